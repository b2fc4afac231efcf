"""From what the service tells to the facts of a plan."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

import pytest

from balsam_exec.model.backlog import HeldGroup, JobGroup
from balsam_exec.model.batch_jobs import BatchJobRecord
from balsam_exec.model.states import BatchJobState
from balsam_exec.site.demand import Terms, allocations_of, work_of
from balsam_exec.site.sizing import Allocation, Phase, Work

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TERMS = Terms(job_mode="mpi", filter_tags={}, cores=8, gpus=4, bound=False, unknown_min=30)


def group(**fields: Any) -> JobGroup:
    return JobGroup(**{"count": 1, "wall_time_min": 10, **fields})


def held(batch_job_id: int, **fields: Any) -> HeldGroup:
    values = {"count": 1, "wall_time_min": 10, "elapsed_sec": 0.0, **fields}
    return HeldGroup(batch_job_id=batch_job_id, **values)


def record(id_: int = 1, **fields: Any) -> BatchJobRecord:
    values = {"num_nodes": 2, "wall_time_min": 60, "state": BatchJobState.QUEUED, "origin": "elastic_queue", **fields}
    return BatchJobRecord(**{"id": id_, "site_id": 1, "created": NOW - timedelta(minutes=3), **values})


def allocation(*held: HeldGroup, terms: Terms = TERMS, **fields: Any) -> Allocation | None:
    found = allocations_of([record(**fields)], held, "elastic_queue", terms, NOW)
    return found[0] if found else None


@pytest.mark.parametrize(
    ("fields", "per_node"),
    [
        ({}, 1),
        ({"node_packing_count": 64}, 64),  # of one core: occupancy alone counts
        ({"node_packing_count": 64, "threads_per_rank": 2}, 4),
        ({"node_packing_count": 64, "threads_per_rank": 4, "threads_per_core": 2}, 4),
        ({"node_packing_count": 2, "threads_per_rank": 2}, 2),
        ({"node_packing_count": 64, "ranks_per_node": 3}, 2),
        ({"node_packing_count": 64, "threads_per_rank": 100}, 1),  # it runs all the same, alone
        ({"node_packing_count": 64, "gpus_per_rank": 0.5}, 8),
        ({"node_packing_count": 64, "gpus_per_rank": 3}, 1),
        ({"node_packing_count": 64, "num_nodes": 2}, 1),
    ],
)
def test_jobs_that_share_a_node(fields: dict[str, Any], per_node: int) -> None:
    assert work_of([group(**fields)], TERMS) == [Work(fields.get("num_nodes", 1), 10, 1, per_node)]


def test_bound_jobs_share_it_by_its_cores() -> None:
    bound = replace(TERMS, bound=True)
    assert work_of([group(node_packing_count=64)], bound) == [Work(1, 10, 1, 8)]


def test_where_the_nodes_are_unknown_occupancy_alone_counts() -> None:
    unknown = replace(TERMS, cores=None, gpus=None)
    fields = {"node_packing_count": 64, "threads_per_rank": 4, "gpus_per_rank": 100}
    assert work_of([group(**fields)], unknown) == [Work(1, 10, 1, 64)]


def test_jobs_that_no_launcher_would_take_do_not_count() -> None:
    assert work_of([group(gpus_per_rank=5), group(gpus_per_rank=1, ranks_per_node=5)], TERMS) == []
    serial = replace(TERMS, job_mode="serial")
    assert work_of([group(num_nodes=2), group(ranks_per_node=2), group()], serial) == [Work(1, 10, 1)]


def test_what_comes_to_the_same_is_counted_together() -> None:
    groups = [group(count=2), group(count=3, gpus_per_rank=4), group(wall_time_min=30), group(wall_time_min=0)]
    assert work_of(groups, TERMS) == [Work(1, 10, 5), Work(1, 30, 2)]  # unknown: as the terms say


def test_an_allocation_that_waits() -> None:
    expected = Allocation(1, 2, 60, Phase.WAITING, own=True, waited_min=3)
    assert allocation() == expected
    assert allocation(state=BatchJobState.PENDING_SUBMISSION) == expected
    assert allocation(origin="user") == replace(expected, own=False)
    assert allocation(state=BatchJobState.PENDING_DELETION) == replace(expected, phase=Phase.ENDING)


def test_an_allocation_that_runs() -> None:
    started = NOW - timedelta(minutes=20, seconds=30)
    found = allocation(
        held(1, count=3, elapsed_sec=600.0),
        held(1, node_packing_count=4, count=8),
        held(7, count=100),
        state=BatchJobState.RUNNING,
        start_time=started,
    )
    assert found == Allocation(1, 2, 40, Phase.RUNNING, own=True, waited_min=3, held=Fraction(20 + 20))


def test_jobs_that_take_longer_than_they_said_are_as_good_as_done() -> None:
    found = allocation(held(1, elapsed_sec=1e6), state=BatchJobState.RUNNING, start_time=NOW)
    assert found is not None
    assert found.held == 0


def test_one_that_has_jobs_runs_whatever_is_recorded() -> None:
    """The agent may not have asked the scheduler yet; it would be a pity to take it back."""
    found = allocation(held(1))
    assert found is not None
    assert found.phase is Phase.RUNNING


def test_one_over_its_time_does_nothing_more() -> None:
    found = allocation(state=BatchJobState.RUNNING, start_time=NOW - timedelta(hours=9))
    assert found is not None
    assert found.minutes == 0


@pytest.mark.parametrize(
    ("fields", "counts"),
    [
        ({}, True),
        ({"filter_tags": {"a": "1"}}, False),
        ({"job_mode": "serial"}, False),
        ({"partitions": [{"num_nodes": 1}]}, False),
    ],
)
def test_other_ones_allocations_count_if_they_take_all_that_ours_do(fields: dict[str, Any], counts: bool) -> None:
    assert (allocation(origin="user", **fields) is not None) == counts
    assert allocation(**fields) is not None


def test_an_allocation_for_more_than_ours_counts() -> None:
    narrow = replace(TERMS, filter_tags={"a": "1", "b": "2"}, job_mode="serial")
    assert allocation(origin="user", filter_tags={"a": "1"}, terms=narrow) is not None
    assert allocation(origin="user", job_mode="serial", terms=narrow) is not None
    assert allocation(origin="user", filter_tags={"a": "2"}, terms=narrow) is None
