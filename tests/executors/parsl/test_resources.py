"""Resource specifications, in the words of several executors, as what a job asks for."""

from __future__ import annotations

from typing import Any

import pytest
from parsl.executors.errors import InvalidResourceSpecification

from balsam_exec.executors.parsl.resources import KEYS, translate


@pytest.mark.parametrize(
    ("specification", "expected"),
    [
        ({}, {"num_nodes": 1, "ranks_per_node": 1, "threads_per_rank": 1, "node_packing_count": 8}),
        ({"num_nodes": 2, "ranks_per_node": 4}, {"num_nodes": 2, "ranks_per_node": 4, "node_packing_count": 2}),
        ({"num_nodes": 2, "num_ranks": 8}, {"num_nodes": 2, "ranks_per_node": 4}),
        ({"ranks_per_node": 4, "num_ranks": 8}, {"num_nodes": 2, "ranks_per_node": 4}),
        ({"num_ranks": 3}, {"num_nodes": 1, "ranks_per_node": 3}),
        ({"num_nodes": 2, "ranks_per_node": 4, "num_ranks": 8}, {"num_nodes": 2, "ranks_per_node": 4}),
        ({"cores": 4}, {"threads_per_rank": 4, "ranks_per_node": 1, "node_packing_count": 2}),
        ({"cores": 4, "ranks_per_node": 2}, {"threads_per_rank": 2, "ranks_per_node": 2}),
        ({"cores": 2, "threads_per_core": 2}, {"threads_per_rank": 4, "node_packing_count": 4}),
        ({"cores": 2, "threads_per_core": 2, "threads_per_rank": 3}, {"threads_per_rank": 3}),
        ({"cores": 16}, {"threads_per_rank": 16, "node_packing_count": 1}),
        ({"cores": 2, "node_packing_count": 3}, {"node_packing_count": 3}),
        ({"gpus": 2}, {"gpus_per_rank": 2}),
        ({"gpus": 2, "ranks_per_node": 4}, {"gpus_per_rank": 0.5}),
        ({"gpus": 2, "ranks_per_node": 4, "gpus_per_rank": 0.5}, {"gpus_per_rank": 0.5}),
        ({"gpus_per_rank": 1}, {"gpus_per_rank": 1}),
        ({"wall_time_min": 5}, {"wall_time_min": 5}),
        ({"running_time_min": 61}, {"wall_time_min": 2}),
        ({"running_time_min": 120, "wall_time_min": 2}, {"wall_time_min": 2}),
        ({"tags": {"kind": "md"}}, {"tags": {"kind": "md"}}),
        ({"launch_params": {"--bind-to": "core"}}, {"launch_params": {"--bind-to": "core"}}),
    ],
)
def test_words_of_all_executors(specification: dict[str, Any], expected: dict[str, Any]) -> None:
    request = translate(specification, workers_per_node=8)
    assert {key: getattr(request, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("specification", "keys"),
    [
        ({"cpus": 1, "memory": 2, "cores": 1}, {"cpus", "memory"}),
        ({"num_ranks": 7, "num_nodes": 2}, {"num_ranks", "num_nodes"}),
        ({"num_ranks": 8, "num_nodes": 2, "ranks_per_node": 3}, {"num_ranks", "num_nodes", "ranks_per_node"}),
        ({"num_ranks": 8, "ranks_per_node": 3}, {"num_ranks", "ranks_per_node"}),
        ({"cores": 3, "ranks_per_node": 2}, {"cores", "ranks_per_node"}),
        ({"cores": 4, "threads_per_rank": 2}, {"cores", "ranks_per_node", "threads_per_rank"}),
        ({"gpus": 2, "gpus_per_rank": 1, "ranks_per_node": 4}, {"gpus", "gpus_per_rank", "ranks_per_node"}),
        ({"wall_time_min": 1, "running_time_min": 120}, {"wall_time_min", "running_time_min"}),
        ({"num_nodes": 0}, {"num_nodes"}),
        ({"cores": 1.5}, {"cores"}),
        ({"cores": True}, {"cores"}),
        ({"gpus": "two"}, {"gpus"}),
        ({"gpus_per_rank": -1}, {"gpus_per_rank"}),
        ({"tags": {"kind": 7}}, {"tags"}),
        ({"node_packing_count": 0}, {"node_packing_count"}),
    ],
)
def test_what_is_unknown_wrong_or_contradictory_is_refused(specification: dict[str, Any], keys: set[str]) -> None:
    with pytest.raises(InvalidResourceSpecification) as caught:
        translate(specification, workers_per_node=8)
    assert caught.value.invalid_keys == keys
    assert str(caught.value)


def test_a_refusal_says_what_there_is() -> None:
    with pytest.raises(InvalidResourceSpecification) as caught:
        translate({"disk": 1}, workers_per_node=1)
    assert all(key in str(caught.value) for key in KEYS)
