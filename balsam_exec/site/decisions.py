"""What to do about an allocation, from what the service wants and what the scheduler says. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from balsam_exec.model.batch_jobs import AllocationRequest, BatchJobPatch, BatchJobRecord
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
class Modify:
    """Have the scheduler change what it was asked for."""

    scheduler_id: str
    before: AllocationRequest
    after: AllocationRequest


@dataclass(frozen=True)
class Update:
    """Tell the service."""

    patch: BatchJobPatch


Action = Submit | Cancel | Modify | Update


def decide(
    job: BatchJobRecord,
    scheduler_id: str | None,
    status: Status | None,
    now: datetime,
    *,
    asked: Sequence[AllocationRequest] = (),
    draining: bool = False,
) -> Action | None:
    """The next step for `job`; None when there is none until something changes.

    `scheduler_id` is what the scheduler knows it by (None: it was never submitted), `status` what the scheduler says,
    `asked` what it was asked for: the last, or perhaps one of the others (empty: as the record is).
    With `draining` nothing is submitted any more and whatever lives is cancelled.
    """
    if job.state in BATCH_JOB_ENDED:
        return None
    if scheduler_id is None:
        return _decide_unsubmitted(job, now, draining)
    state = SchedulerState.UNKNOWN if status is None else status.state
    told = _told(job, asked[-1] if asked else None)
    if state is SchedulerState.FINISHED and status is not None:
        return Update(_finished(job, scheduler_id, status, now, told))
    if job.state is BatchJobState.PENDING_DELETION or (draining and state is not SchedulerState.UNKNOWN):
        return Cancel(scheduler_id)
    news = None if status is None else _news(job, status)
    if state is SchedulerState.RUNNING and job.state is not BatchJobState.RUNNING:
        running = BatchJobPatch(
            state=BatchJobState.RUNNING, scheduler_id=scheduler_id, start_time=now, status_info=news, submitted=told
        )
        return Update(running)
    if state is SchedulerState.QUEUED and job.state is BatchJobState.PENDING_SUBMISSION:
        queued = BatchJobPatch(state=BatchJobState.QUEUED, scheduler_id=scheduler_id, status_info=news, submitted=told)
        return Update(queued)
    if state is SchedulerState.QUEUED and job.state is BatchJobState.QUEUED:
        if job.submitted is not None and any(one.changes(job) for one in (job.submitted, *asked)):
            return Modify(scheduler_id, job.submitted, job.request)
        return Update(BatchJobPatch(status_info=news, submitted=told)) if news is not None or told else None
    return None


def _told(job: BatchJobRecord, asked: AllocationRequest | None) -> AllocationRequest | None:
    """What the scheduler has been told, with partitions that fit; None: the record has it."""
    recorded = job.submitted or job.request
    if asked is None or not asked.changes(recorded):
        return None if job.submitted is not None else recorded
    fit = sum(partition.num_nodes for partition in recorded.partitions) <= asked.num_nodes
    return asked.model_copy(update={"partitions": recorded.partitions if fit else []})


def _news(job: BatchJobRecord, status: Status) -> dict[str, object] | None:
    """What to say of a job that lives; None if it is said already."""
    info = {**_kept(job), **({"info": status.info} if status.info else {})}
    return info if info != job.status_info else None


def _kept(job: BatchJobRecord) -> dict[str, object]:
    """What was said of it that goes on to hold."""
    return {key: value for key, value in job.status_info.items() if key == "refused"}


def _decide_unsubmitted(job: BatchJobRecord, now: datetime, draining: bool) -> Action | None:
    if job.state is BatchJobState.PENDING_DELETION:
        info = {"info": "cancelled before it was submitted"}
        return Update(BatchJobPatch(state=BatchJobState.FINISHED, end_time=now, status_info=info))
    if job.state is BatchJobState.PENDING_SUBMISSION and not draining:
        return Submit()
    return None


def refused(job: BatchJobRecord, modify: Modify, words: str) -> BatchJobPatch:
    """What to tell the service when the scheduler does not want to change a job."""
    return BatchJobPatch(refused=modify.after, status_info={**job.status_info, "refused": words})


def _finished(
    job: BatchJobRecord, scheduler_id: str, status: Status, now: datetime, told: AllocationRequest | None
) -> BatchJobPatch:
    info: dict[str, object] = {**_kept(job), "info": status.info}
    if status.exit_code is not None:
        info["exit_code"] = status.exit_code
    cancelled = job.state is BatchJobState.PENDING_DELETION
    if cancelled:
        info["cancelled"] = True
    never_ran = cancelled and status.exit_code is None
    return BatchJobPatch(
        state=BatchJobState.FINISHED,
        scheduler_id=scheduler_id,
        start_time=now if job.start_time is None and not never_ran else None,
        end_time=now,
        status_info=info,
        submitted=told,
    )
