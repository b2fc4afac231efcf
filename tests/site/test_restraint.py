"""When allocations are not requested any more, because the last ones came to nothing."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from balsam_exec.model.batch_jobs import BatchJobRecord
from balsam_exec.model.states import BatchJobState
from balsam_exec.site.restraint import MAX_REFUSALS, Restraint, last_accepted, restraint

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
B = BatchJobState


def record(number: int = 1, *, ago: float = 10, state: BatchJobState = B.FINISHED, **fields: Any) -> BatchJobRecord:
    """One that ended so many seconds ago."""
    ended = NOW - timedelta(seconds=ago)
    values = {"created": ended, "end_time": ended, "state": state, "origin": "elastic_queue", **fields}
    return BatchJobRecord(id=number, site_id=1, num_nodes=1, wall_time_min=5, **values)


def refused(count: int) -> list[BatchJobRecord]:
    """The newest first."""
    info = {"error": "sbatch: no such account"}
    return [record(9 - n, ago=10 + 60 * n, state=B.SUBMIT_FAILED, status_info=info) for n in range(count)]


@pytest.mark.parametrize(("number", "pause"), [(1, 15), (2, 30), (5, 240), (9, 3600), (100, 3600)])
def test_pauses_grow(number: int, pause: float) -> None:
    in_vain = [record(n + 1, ago=10 + 3600 * n) for n in range(number)]
    held = restraint(in_vain, None, NOW)
    assert held is not None
    assert held.seconds == pause - 10
    assert restraint(in_vain, None, NOW + timedelta(hours=2)) is None


def test_nothing_holds_where_nothing_went_wrong() -> None:
    assert restraint([], None, NOW) is None


def test_it_says_which_and_why() -> None:
    assert restraint([record(4), record(3, ago=99)], None, NOW) == Restraint(20, "batch jobs 4, 3 ran no job")
    held = restraint(refused(1), None, NOW)
    assert held == Restraint(5, "batch jobs 9 ran no job (sbatch: no such account)")


def test_what_says_not_when_it_ended_ended_when_it_was_made() -> None:
    one = record(state=B.SUBMIT_FAILED, created=NOW - timedelta(seconds=5), end_time=None)
    held = restraint([one], None, NOW)
    assert held is not None
    assert held.seconds == 10


def test_after_so_many_refusals_it_pauses_until_somebody_helps() -> None:
    assert not math.isinf(getattr(restraint(refused(MAX_REFUSALS - 1), None, NOW), "seconds", 0.0))
    for later in (0, 100):
        held = restraint(refused(MAX_REFUSALS), None, NOW + timedelta(hours=later))
        assert held is not None
        assert math.isinf(held.seconds)
        assert "refused the last 6 requests (sbatch: no such account)" in held.reason
        assert "balsam site sync" in held.reason


def test_refusals_that_are_not_the_last_ones_do_not_pause_it() -> None:
    held = restraint([record(10, ago=1), *refused(MAX_REFUSALS)], None, NOW)
    assert held is not None
    assert not math.isinf(held.seconds)


def test_what_was_before_help_came_does_not_count() -> None:
    in_vain = refused(MAX_REFUSALS)
    assert restraint(in_vain, NOW - timedelta(seconds=5), NOW) is None
    held = restraint(in_vain, NOW - timedelta(seconds=40), NOW)
    assert held is not None
    assert held.seconds == 5, "only one since then"


def test_help_is_an_allocation_that_a_user_asked_for_and_the_scheduler_took() -> None:
    taken = record(1, ago=50, origin="user", scheduler_id="7")
    others = [
        record(2, ago=1, origin="user", state=B.SUBMIT_FAILED),
        record(3, ago=1, scheduler_id="8"),
        record(4, ago=60, origin="user", scheduler_id="9"),
    ]
    assert last_accepted([*others, taken]) == taken.created
    assert last_accepted(others[:2]) is None
