"""What to do about an allocation, from what the service wants and what the scheduler says. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from balsam_exec.model.batch_jobs import BatchJobPatch, BatchJobRecord
from balsam_exec.model.states import BATCH_JOB_ENDED, BatchJobState
from balsam_exec.platform.schedulers import Status
from balsam_exec.platform.schedulers.base import SchedulerState


@dataclass(frozen=True)
class Submit:
    """Hand it to the scheduler."""


@dataclass(frozen=True)
class Cancel:
    """Have the scheduler end it."""

    scheduler_id: str


@dataclass(frozen=True)
class Update:
    """Tell the service."""

    patch: BatchJobPatch


Action = Submit | Cancel | Update


def decide(
    job: BatchJobRecord, scheduler_id: str | None, status: Status | None, now: datetime, *, draining: bool = False
) -> Action | None:
    """The next step for `job`; None when there is none until something changes.

    `scheduler_id` is what the scheduler knows it by (None: it was never submitted), `status` what the scheduler says.
    With `draining` nothing is submitted any more and whatever lives is cancelled.
    """
    if job.state in BATCH_JOB_ENDED:
        return None
    if scheduler_id is None:
        return _decide_unsubmitted(job, now, draining)
    state = SchedulerState.UNKNOWN if status is None else status.state
    if state is SchedulerState.FINISHED and status is not None:
        return Update(_finished(job, scheduler_id, status, now))
    if job.state is BatchJobState.PENDING_DELETION or (draining and state is not SchedulerState.UNKNOWN):
        return Cancel(scheduler_id)
    news = None if status is None else _news(job, status)
    if state is SchedulerState.RUNNING and job.state is not BatchJobState.RUNNING:
        running = BatchJobState.RUNNING
        return Update(BatchJobPatch(state=running, scheduler_id=scheduler_id, start_time=now, status_info=news))
    if state is SchedulerState.QUEUED and job.state is BatchJobState.PENDING_SUBMISSION:
        return Update(BatchJobPatch(state=BatchJobState.QUEUED, scheduler_id=scheduler_id, status_info=news))
    if state is SchedulerState.QUEUED and job.state is BatchJobState.QUEUED and news is not None:
        return Update(BatchJobPatch(status_info=news))
    return None


def _news(job: BatchJobRecord, status: Status) -> dict[str, object] | None:
    """What to say of a job that lives; None if it is said already."""
    info: dict[str, object] = {"info": status.info} if status.info else {}
    return info if info != job.status_info else None


def _decide_unsubmitted(job: BatchJobRecord, now: datetime, draining: bool) -> Action | None:
    if job.state is BatchJobState.PENDING_DELETION:
        info = {"info": "cancelled before it was submitted"}
        return Update(BatchJobPatch(state=BatchJobState.FINISHED, end_time=now, status_info=info))
    if job.state is BatchJobState.PENDING_SUBMISSION and not draining:
        return Submit()
    return None


def _finished(job: BatchJobRecord, scheduler_id: str, status: Status, now: datetime) -> BatchJobPatch:
    info: dict[str, object] = {"info": status.info}
    if status.exit_code is not None:
        info["exit_code"] = status.exit_code
    if job.state is BatchJobState.PENDING_DELETION:
        info["cancelled"] = True
    return BatchJobPatch(
        state=BatchJobState.FINISHED,
        scheduler_id=scheduler_id,
        start_time=now if job.start_time is None else None,
        end_time=now,
        status_info=info,
    )
