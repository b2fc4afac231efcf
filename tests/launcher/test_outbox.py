"""Reports in their batches: none is lost, none goes twice at once, one bad one stops no other."""

from __future__ import annotations

import math
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from balsam_exec.launcher.outbox import Outbox
from balsam_exec.model.base import now
from balsam_exec.model.jobs import Result
from balsam_exec.model.sessions import Report
from balsam_exec.model.states import JobState

LINGER = 0.02


def report(job_id: int, state: JobState | None = JobState.RUN_DONE, size: int = 0) -> Report:
    result = Result(ok=True, value=bytes(size)) if size else None
    return Report(job_id=job_id, epoch=1, state=state, timestamp=now(), result=result)


def outbox_of(*reports: Report) -> Outbox:
    outbox = Outbox(LINGER)
    for each in reports:
        outbox.put(each, 0, urgent=True)
    return outbox


def ids(reports: Iterable[Report]) -> list[int]:
    return [each.job_id for each in reports]


def test_reports_linger_until_one_is_urgent() -> None:
    outbox = Outbox(LINGER)
    outbox.put(report(1, JobState.RUNNING), 0, urgent=False)
    assert (outbox.due, outbox.take(0.01)) == (LINGER, [])
    outbox.put(report(2, JobState.RUNNING), 0.015, urgent=False)
    assert outbox.due == LINGER
    outbox.put(report(1), 0.016, urgent=True)
    assert outbox.take(0.016, patient=True) == []
    assert ids(outbox.take(0.016)) == [1, 2, 1]


def test_even_with_patience_nothing_lingers_for_long() -> None:
    outbox = outbox_of(report(1))
    assert outbox.take(LINGER / 2, patient=True) == []
    assert ids(outbox.take(LINGER, patient=True)) == [1]


def test_one_batch_at_a_time() -> None:
    outbox = outbox_of(report(1))
    assert ids(outbox.take(0)) == [1]
    outbox.put(report(2), 1, urgent=True)
    assert (outbox.due, outbox.take(1), len(outbox)) == (math.inf, [], 2)
    outbox.delivered()
    assert ids(outbox.take(1)) == [2]
    outbox.delivered()
    assert (len(outbox), outbox.due) == (0, math.inf)


def test_stale_jobs_are_forgotten_and_the_rest_goes_again_first() -> None:
    outbox = outbox_of(report(1), report(2), report(3))
    outbox.take(0)
    outbox.put(report(4), 0, urgent=True)
    assert outbox.stale({2}, 1) == {(2, 1)}
    assert ids(outbox.take(1)) == [1, 3, 4]


def test_what_is_forgotten_is_not_due() -> None:
    outbox = outbox_of(report(1), report(1), report(2))
    outbox.forget({(1, 1)})
    assert (outbox.due, len(outbox)) == (LINGER, 1)
    outbox.forget({(2, 1)})
    assert (outbox.due, outbox.take(1)) == (math.inf, [])


def test_large_results_are_spread_over_batches() -> None:
    outbox = outbox_of(*(report(i, size=2**20) for i in range(1, 41)))
    sizes = []
    while batch := outbox.take(0):
        sizes.append(len(batch))
        outbox.delivered()
    assert sum(sizes) == 40
    assert max(sizes) <= 16


def test_a_refused_report_is_found_and_told_as_an_error() -> None:
    outbox = outbox_of(*(report(i, size=5) for i in range(1, 11)))
    taken: list[Report] = []
    given_up: list[Report] = []
    while batch := outbox.take(0):
        bad = [each for each in batch if each.job_id == 6 and each.state is not JobState.RUN_ERROR]
        if not bad:
            taken += batch
            outbox.delivered()
        elif lost := outbox.refused("too strange", 0):
            given_up.append(lost)
    assert given_up == []
    assert ids(taken) == list(range(1, 11))
    assert taken[5].result is not None
    assert taken[5].result.error == "the service refused the result: too strange"


def test_a_refused_failure_is_told_in_other_words() -> None:
    strange = Result(ok=False, error="strange", reason="exit", return_code=3)
    outbox = outbox_of(
        report(1, JobState.RUN_ERROR).model_copy(update={"result": strange, "data": {"error": "strange"}})
    )
    outbox.take(0)
    assert outbox.refused("too strange", 0) is None
    [told] = outbox.take(0)
    assert told.state is JobState.RUN_ERROR
    assert told.data == {"error": "the service refused the result: too strange"}


def test_what_is_always_refused_is_given_up() -> None:
    outbox = outbox_of(report(1, size=5), report(2))
    given_up = []
    for _ in range(10):
        batch = outbox.take(0)
        if ids(batch) == [2]:
            outbox.delivered()
        elif batch and (lost := outbox.refused("no", 0)):
            given_up.append(lost.job_id)
    assert given_up == [1]
    assert len(outbox) == 0


@given(st.lists(st.sampled_from(["put", "take", "delivered", "stale", "tick"])))
def test_every_report_is_delivered_once_in_order(moves: list[str]) -> None:
    outbox, clock, count = Outbox(LINGER), 0.0, 0
    under_way: list[Report] = []
    delivered: list[int] = []
    for move in [*moves, "tick", *["take", "delivered"] * 2]:
        match move:
            case "put":
                count += 1
                outbox.put(report(count), clock, urgent=count % 2 == 0)
            case "tick":
                clock += 2 * LINGER
            case "take":
                under_way = outbox.take(clock) or under_way
            case "delivered" if under_way:
                outbox.delivered()
                delivered += ids(under_way)
                under_way = []
            case "stale" if under_way:
                outbox.stale((), clock)
                under_way = []
    assert delivered == list(range(1, count + 1))
