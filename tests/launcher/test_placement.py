"""Placement: jobs share nodes, and never more than there is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balsam_exec.launcher.placement import WHOLE, Need, Node, Placement, obstacle, occupy, place, room, vacate
from balsam_exec.model.jobs import Resources
from balsam_exec.platform.nodes import NodeSpec


def nodes(*shapes: tuple[int, int]) -> tuple[Node, ...]:
    specs = [NodeSpec(f"n{i}", cores, tuple(map(str, range(gpus)))) for i, (cores, gpus) in enumerate(shapes)]
    return tuple(map(Node.empty, specs))


def fill(free: tuple[Node, ...], **resources: float) -> list[Placement]:
    """As many such jobs as fit."""
    need = Need.of(Resources.model_validate(resources))
    found = []
    while placement := place(free, need):
        found.append(placement)
        free = occupy(free, placement)
    assert room(free, need) == 0
    return found


@pytest.mark.parametrize(
    ("resources", "count"),
    [
        ({}, 1),  # a node for itself
        ({"node_packing_count": 4}, 4),
        ({"node_packing_count": 3}, 3),
        ({"node_packing_count": 64}, 64),  # whatever the cores
        ({"node_packing_count": 64, "threads_per_rank": 3}, 2),
        ({"node_packing_count": 64, "threads_per_rank": 4, "threads_per_core": 2}, 4),
        ({"node_packing_count": 64, "ranks_per_node": 8}, 1),
        ({"node_packing_count": 64, "ranks_per_node": 100}, 1),  # more than there is: alone
        ({"node_packing_count": 64, "gpus_per_rank": 1}, 2),
        ({"node_packing_count": 64, "gpus_per_rank": 0.5}, 4),
        ({"node_packing_count": 64, "gpus_per_rank": 1 / 3}, 6),
        ({"node_packing_count": 64, "gpus_per_rank": 1.5}, 1),
        ({"node_packing_count": 64, "gpus_per_rank": 3}, 0),
        ({"num_nodes": 2}, 0),
    ],
)
def test_how_many_fit_on_a_node_of_8_cores_and_2_gpus(resources: dict[str, float], count: int) -> None:
    assert len(fill(nodes((8, 2)), **resources)) == count
    assert room(nodes((8, 2)), Need.of(Resources.model_validate(resources))) == count
    impossible = obstacle([node.spec for node in nodes((8, 2))], Need.of(Resources.model_validate(resources)))
    assert (impossible is None) == (count > 0)


def test_a_job_too_large_for_a_node_waits_until_it_is_empty() -> None:
    free = nodes((4, 0))
    small = place(free, Need.of(Resources(ranks_per_node=2, node_packing_count=8)))
    large = Need.of(Resources(ranks_per_node=16, node_packing_count=8))
    assert small is not None
    assert place(occupy(free, small), large) is None
    alone = place(free, large)
    assert alone is not None
    assert place(occupy(free, alone), Need.of(Resources(node_packing_count=8))) is None


def test_jobs_of_several_nodes() -> None:
    found = fill(nodes((4, 0), (4, 0), (4, 0), (4, 0), (4, 0)), num_nodes=2)
    assert [[share.node for share in p.shares] for p in found] == [[0, 1], [2, 3]]


def test_parts_of_gpus_are_taken_from_the_fullest() -> None:
    found = fill(nodes((8, 2)), gpus_per_rank=0.5, node_packing_count=8)
    assert [share.gpus[0][0] for p in found for share in p.shares] == [0, 0, 1, 1]


RESOURCES = st.builds(
    Resources,
    num_nodes=st.integers(1, 3),
    ranks_per_node=st.integers(1, 6),
    threads_per_rank=st.integers(1, 4),
    threads_per_core=st.integers(1, 2),
    gpus_per_rank=st.sampled_from([0, 0, 0.1, 1 / 3, 0.5, 1, 2]),
    node_packing_count=st.integers(1, 9),
)


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(0, 3)), min_size=1, max_size=4),
    st.lists(st.tuples(RESOURCES, st.integers(0, 5))),
)
def test_nothing_is_oversubscribed_and_everything_comes_back(
    shapes: list[tuple[int, int]], arrivals: list[tuple[Resources, int]]
) -> None:
    empty = free = nodes(*shapes)
    running: list[tuple[Need, Placement]] = []
    for resources, ending in arrivals:
        need = Need.of(resources)
        if placement := place(free, need):
            assert obstacle([node.spec for node in free], need) is None
            free = occupy(free, placement)
            running.append((need, placement))
        if running:
            free = vacate(free, running.pop(ending % len(running))[1])
        for index, node in enumerate(free):
            assert 0 <= node.cores <= node.spec.cores
            assert 0 <= node.occupancy <= WHOLE
            assert all(0 <= units <= WHOLE for units in node.gpus)
            here = [n for n, p in running if any(share.node == index for share in p.shares)]
            assert node.jobs == len(here)
            assert len(here) == 1 or sum(need.cores for need in here) <= node.spec.cores
            assert sum(need.occupancy for need in here) <= WHOLE
            assert sum(need.gpus for need in here) <= len(node.gpus) * WHOLE
    for _, placement in running:
        free = vacate(free, placement)
    assert free == empty
