"""The table of what the agent does about an allocation."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import product

import pytest

from balsam_exec.model.batch_jobs import AllocationRequest, BatchJobPatch, BatchJobRecord, Partition
from balsam_exec.model.states import BATCH_JOB_ENDED, BATCH_JOB_TRANSITIONS, BatchJobState
from balsam_exec.platform.schedulers import Status
from balsam_exec.platform.schedulers.base import SchedulerState
from balsam_exec.site.decisions import Action, Cancel, Modify, Submit, Update, decide, refused

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
EARLIER = datetime(2026, 1, 2, 3, 0, 0, tzinfo=UTC)
ID = "7.8@host"
B = BatchJobState
ASKED = AllocationRequest(num_nodes=1, wall_time_min=5)

QUEUED, RUNNING, UNKNOWN = (Status(s) for s in (SchedulerState.QUEUED, SchedulerState.RUNNING, SchedulerState.UNKNOWN))
ENDED = Status(SchedulerState.FINISHED, 3, "exit code 3")
KILLED = Status(SchedulerState.FINISHED, None, "it was killed")


def record(state: BatchJobState) -> BatchJobRecord:
    """The scheduler was told what it says, as far as it was submitted."""
    return BatchJobRecord(
        id=1,
        site_id=1,
        num_nodes=1,
        wall_time_min=5,
        state=state,
        created=EARLIER,
        start_time=EARLIER if state is B.RUNNING else None,
        submitted=ASKED if state in (B.QUEUED, B.RUNNING) else None,
    )


def finished(
    info: dict[str, object], start: datetime | None = NOW, submitted: AllocationRequest | None = None
) -> Update:
    values = {"start_time": start, "end_time": NOW, "status_info": info, "submitted": submitted}
    return Update(BatchJobPatch.model_validate({"state": B.FINISHED, "scheduler_id": ID, **values}))


SUBMIT, CANCEL = Submit(), Cancel(ID)
TO_QUEUED = Update(BatchJobPatch(state=B.QUEUED, scheduler_id=ID, submitted=ASKED))
TO_RUNNING = Update(BatchJobPatch(state=B.RUNNING, scheduler_id=ID, start_time=NOW))
AT_ONCE = Update(BatchJobPatch(state=B.RUNNING, scheduler_id=ID, start_time=NOW, submitted=ASKED))
EXITED: dict[str, object] = {"info": "exit code 3", "exit_code": 3}

TABLE: list[tuple[BatchJobState, str | None, Status | None, Action | None]] = [
    # Never submitted.
    (B.PENDING_SUBMISSION, None, None, SUBMIT),
    (
        B.PENDING_DELETION,
        None,
        None,
        Update(
            BatchJobPatch(state=B.FINISHED, end_time=NOW, status_info={"info": "cancelled before it was submitted"})
        ),
    ),
    # Submitted, and the agent died before it could say so.
    (B.PENDING_SUBMISSION, ID, QUEUED, TO_QUEUED),
    (B.PENDING_SUBMISSION, ID, RUNNING, AT_ONCE),
    (B.PENDING_SUBMISSION, ID, ENDED, finished(EXITED, submitted=ASKED)),
    (B.PENDING_SUBMISSION, ID, UNKNOWN, None),
    # What the scheduler says goes to the service.
    (B.QUEUED, ID, QUEUED, None),
    (B.QUEUED, ID, RUNNING, TO_RUNNING),
    (B.QUEUED, ID, ENDED, finished(EXITED)),
    (B.RUNNING, ID, RUNNING, None),
    (B.RUNNING, ID, ENDED, finished(EXITED, start=None)),
    (B.RUNNING, ID, KILLED, finished({"info": "it was killed"}, start=None)),
    # Unknown is never finished, and neither is what a listing leaves out.
    (B.QUEUED, ID, UNKNOWN, None),
    (B.RUNNING, ID, UNKNOWN, None),
    (B.RUNNING, ID, None, None),
    # Its owner wants it gone.
    (B.PENDING_DELETION, ID, QUEUED, CANCEL),
    (B.PENDING_DELETION, ID, RUNNING, CANCEL),
    (B.PENDING_DELETION, ID, UNKNOWN, CANCEL),
    (B.PENDING_DELETION, ID, ENDED, finished({**EXITED, "cancelled": True}, submitted=ASKED)),
]


WAITS = Status(SchedulerState.QUEUED, info="Priority")
SAID: dict[str, object] = {"info": "Priority"}
TROUBLE: dict[str, object] = {"error": "the scheduler is away"}

NEWS: list[tuple[BatchJobState, dict[str, object], Status, Action | None]] = [
    (
        B.PENDING_SUBMISSION,
        TROUBLE,
        WAITS,
        Update(BatchJobPatch(state=B.QUEUED, scheduler_id=ID, status_info=SAID, submitted=ASKED)),
    ),
    (
        B.PENDING_SUBMISSION,
        TROUBLE,
        QUEUED,
        Update(BatchJobPatch(state=B.QUEUED, scheduler_id=ID, status_info={}, submitted=ASKED)),
    ),
    (B.QUEUED, {}, WAITS, Update(BatchJobPatch(status_info=SAID))),
    (B.QUEUED, SAID, WAITS, None),
    (B.QUEUED, SAID, QUEUED, Update(BatchJobPatch(status_info={}))),
    (B.QUEUED, SAID, UNKNOWN, None),
    (
        B.QUEUED,
        SAID,
        RUNNING,
        Update(BatchJobPatch(state=B.RUNNING, scheduler_id=ID, start_time=NOW, status_info={})),
    ),
    (B.RUNNING, {}, WAITS, None),
]


@pytest.mark.parametrize(("state", "said", "status", "action"), NEWS)
def test_why_it_waits(state: BatchJobState, said: dict[str, object], status: Status, action: Action | None) -> None:
    job = record(state).model_copy(update={"status_info": said})
    assert decide(job, ID, status, NOW) == action


@pytest.mark.parametrize(("state", "scheduler_id", "status", "action"), TABLE)
def test_table(state: BatchJobState, scheduler_id: str | None, status: Status | None, action: Action | None) -> None:
    assert decide(record(state), scheduler_id, status, NOW) == action


WANTED = AllocationRequest(num_nodes=2, wall_time_min=5)
REFUSED: dict[str, object] = {"refused": "num_nodes stays 1, not 2: too many"}


def changed(state: BatchJobState, **fields: object) -> BatchJobRecord:
    """Its owner wants two nodes now."""
    return record(state).model_copy(update={"num_nodes": 2, **fields})


def test_the_scheduler_is_told_of_changes() -> None:
    assert decide(changed(B.QUEUED), ID, QUEUED, NOW) == Modify(ID, ASKED, WANTED)
    assert decide(changed(B.QUEUED), ID, WAITS, NOW) == Modify(ID, ASKED, WANTED)


def test_what_cannot_be_known_or_changed_is_left_alone() -> None:
    assert decide(changed(B.QUEUED), ID, UNKNOWN, NOW) is None
    assert decide(changed(B.QUEUED), ID, RUNNING, NOW) == TO_RUNNING
    assert decide(changed(B.PENDING_DELETION), ID, QUEUED, NOW) == CANCEL
    assert decide(changed(B.QUEUED, submitted=WANTED), ID, QUEUED, NOW) is None


def test_what_the_scheduler_is_not_told_calls_for_nothing() -> None:
    assert decide(record(B.QUEUED).model_copy(update={"filter_tags": {"a": "b"}}), ID, QUEUED, NOW) is None


def test_changed_while_it_was_submitted() -> None:
    """The record knows what was asked for then, even from an agent that has died."""
    assert decide(changed(B.PENDING_SUBMISSION), ID, QUEUED, NOW, asked=[ASKED]) == TO_QUEUED
    assert decide(changed(B.PENDING_SUBMISSION), ID, RUNNING, NOW, asked=[ASKED]) == AT_ONCE


def test_somebody_died_over_a_change() -> None:
    """Nobody knows whether the scheduler has heard of it: it is told what is wanted; if it starts, it probably has."""
    for wanted, request in ((record(B.QUEUED), ASKED), (changed(B.QUEUED), WANTED)):
        for asked in ([WANTED], [WANTED, ASKED], [ASKED, WANTED]):
            assert decide(wanted, ID, QUEUED, NOW, asked=asked) == Modify(ID, ASKED, request)
    started = BatchJobPatch(state=B.RUNNING, scheduler_id=ID, start_time=NOW, submitted=WANTED)
    assert decide(record(B.QUEUED), ID, RUNNING, NOW, asked=[WANTED]) == Update(started)
    for asked in ([ASKED], [WANTED, ASKED]):
        assert decide(record(B.QUEUED), ID, RUNNING, NOW, asked=asked) == TO_RUNNING


def test_partitions_that_fit_stay() -> None:
    parts = [Partition(num_nodes=1)]
    for nodes, kept in ((2, parts), (1, parts)):
        job = record(B.QUEUED).model_copy(update={"submitted": ASKED.model_copy(update={"partitions": parts})})
        action = decide(job, ID, RUNNING, NOW, asked=[AllocationRequest(num_nodes=nodes, wall_time_min=9)])
        assert isinstance(action, Update)
        assert action.patch.submitted is not None
        assert action.patch.submitted.partitions == kept
    two = ASKED.model_copy(update={"num_nodes": 2, "partitions": [Partition(num_nodes=2)]})
    job = record(B.QUEUED).model_copy(update={"submitted": two, **two.model_dump()})
    action = decide(job, ID, RUNNING, NOW, asked=[ASKED])
    assert isinstance(action, Update)
    assert action.patch.submitted == ASKED


def test_what_was_submitted_before_that_was_recorded() -> None:
    old = record(B.QUEUED).model_copy(update={"submitted": None})
    assert decide(old, ID, QUEUED, NOW) == Update(BatchJobPatch(submitted=ASKED))


def test_a_refusal_says_what_was_refused_and_is_not_forgotten() -> None:
    job = changed(B.QUEUED, status_info=SAID)
    told = refused(job, Modify(ID, ASKED, WANTED), "too many")
    assert told == BatchJobPatch(refused=WANTED, status_info={**SAID, "refused": "too many"})
    told_once = record(B.QUEUED).model_copy(update={"status_info": REFUSED})
    assert decide(told_once, ID, QUEUED, NOW) is None
    assert decide(told_once, ID, WAITS, NOW) == Update(BatchJobPatch(status_info={**REFUSED, **SAID}))
    ended = decide(told_once, ID, ENDED, NOW)
    assert isinstance(ended, Update)
    assert ended.patch.status_info == {**REFUSED, **EXITED}


DRAINING: list[tuple[BatchJobState, str | None, Status | None, Action | None]] = [
    (B.PENDING_SUBMISSION, None, None, None),
    (B.PENDING_SUBMISSION, ID, RUNNING, CANCEL),
    (B.QUEUED, ID, QUEUED, CANCEL),
    (B.RUNNING, ID, RUNNING, CANCEL),
    (B.RUNNING, ID, UNKNOWN, None),
    (B.RUNNING, ID, ENDED, finished(EXITED, start=None)),
]


@pytest.mark.parametrize(("state", "scheduler_id", "status", "action"), DRAINING)
def test_draining(state: BatchJobState, scheduler_id: str | None, status: Status | None, action: Action | None) -> None:
    assert decide(record(state), scheduler_id, status, NOW, draining=True) == action


def test_every_update_is_a_legal_transition() -> None:
    for state, status, draining in product(B, (QUEUED, RUNNING, UNKNOWN, ENDED, KILLED), (False, True)):
        action = decide(record(state), ID, status, NOW, draining=draining)
        if state in BATCH_JOB_ENDED:
            assert action is None
        if isinstance(action, Update) and action.patch.state is not None:
            assert (state, action.patch.state) in BATCH_JOB_TRANSITIONS
