"""The table of what the agent does about an allocation."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import product

import pytest

from balsam_exec.model.batch_jobs import BatchJobPatch, BatchJobRecord
from balsam_exec.model.states import BATCH_JOB_ENDED, BATCH_JOB_TRANSITIONS, BatchJobState
from balsam_exec.platform.schedulers import Status
from balsam_exec.platform.schedulers.base import SchedulerState
from balsam_exec.site.decisions import Action, Cancel, Submit, Update, decide

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
EARLIER = datetime(2026, 1, 2, 3, 0, 0, tzinfo=UTC)
ID = "7.8@host"
B = BatchJobState

QUEUED, RUNNING, UNKNOWN = (Status(s) for s in (SchedulerState.QUEUED, SchedulerState.RUNNING, SchedulerState.UNKNOWN))
ENDED = Status(SchedulerState.FINISHED, 3, "exit code 3")
KILLED = Status(SchedulerState.FINISHED, None, "it was killed")


def record(state: BatchJobState) -> BatchJobRecord:
    started = EARLIER if state is B.RUNNING else None
    return BatchJobRecord(
        id=1, site_id=1, num_nodes=1, wall_time_min=5, state=state, created=EARLIER, start_time=started
    )


def finished(info: dict[str, object], start: datetime | None = NOW) -> Update:
    return Update(BatchJobPatch(state=B.FINISHED, scheduler_id=ID, start_time=start, end_time=NOW, status_info=info))


SUBMIT, CANCEL = Submit(), Cancel(ID)
TO_QUEUED = Update(BatchJobPatch(state=B.QUEUED, scheduler_id=ID))
TO_RUNNING = Update(BatchJobPatch(state=B.RUNNING, scheduler_id=ID, start_time=NOW))
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
    (B.PENDING_SUBMISSION, ID, RUNNING, TO_RUNNING),
    (B.PENDING_SUBMISSION, ID, ENDED, finished(EXITED)),
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
    (B.PENDING_DELETION, ID, ENDED, finished({**EXITED, "cancelled": True})),
]


WAITS = Status(SchedulerState.QUEUED, info="Priority")
SAID: dict[str, object] = {"info": "Priority"}
TROUBLE: dict[str, object] = {"error": "the scheduler is away"}

NEWS: list[tuple[BatchJobState, dict[str, object], Status, Action | None]] = [
    (B.PENDING_SUBMISSION, TROUBLE, WAITS, Update(BatchJobPatch(state=B.QUEUED, scheduler_id=ID, status_info=SAID))),
    (B.PENDING_SUBMISSION, TROUBLE, QUEUED, Update(BatchJobPatch(state=B.QUEUED, scheduler_id=ID, status_info={}))),
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
