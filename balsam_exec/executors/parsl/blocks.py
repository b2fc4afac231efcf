"""Parsl's blocks as allocations of a site."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

from parsl.jobs.states import JobState, JobStatus
from parsl.providers.base import ExecutionProvider

from balsam_exec.client.service import Service
from balsam_exec.model.base import MAX_PAGE
from balsam_exec.model.batch_jobs import BatchJobPatch, BatchJobRecord, BatchJobSpec
from balsam_exec.model.errors import Conflict, NotFound, ServiceUnavailable
from balsam_exec.model.states import BATCH_JOB_ENDED, BatchJobState

log = logging.getLogger(__name__)

#: Seconds between two looks at the blocks, at least: Parsl has a period of its own (`strategy_period`).
POLL_SEC = 1
#: A launcher ends its tasks in time: so many seconds before the end of its block at most.
_MARGIN_SEC = 60

_STATES = {
    BatchJobState.PENDING_SUBMISSION: JobState.PENDING,
    BatchJobState.QUEUED: JobState.PENDING,
    BatchJobState.RUNNING: JobState.RUNNING,
    BatchJobState.PENDING_DELETION: JobState.CANCELLED,
    BatchJobState.SUBMIT_FAILED: JobState.FAILED,
}


class BatchJobProvider(ExecutionProvider):
    """The blocks of one executor: `connect` says where and what they are."""

    def __init__(
        self, *, init_blocks: int, min_blocks: int, max_blocks: int, nodes_per_block: int, parallelism: float
    ) -> None:
        super().__init__()
        self.init_blocks = init_blocks
        self.min_blocks = min_blocks
        self.max_blocks = max_blocks
        self.nodes_per_block = nodes_per_block
        self.parallelism = parallelism
        self.resources = {}
        self._service: Service | None = None
        self._spec: BatchJobSpec | None = None
        self._logs: Path | None = None
        self._known: dict[str, JobStatus] = {}

    def connect(self, service: Service, spec: BatchJobSpec, logs: Path | None = None) -> None:
        """`logs` is the directory of what the launchers say, where it can be read here."""
        self._service, self._spec, self._logs = service, spec, logs

    @property
    def label(self) -> str:
        return "balsam"

    @property
    def status_polling_interval(self) -> int:
        return POLL_SEC

    def submit(self, command: str, tasks_per_node: int, job_name: str = "parsl.auto") -> str:
        """Ask for a block; its id. What runs there is the site's affair: `command` is not."""
        service, spec = self._connected()
        job_id = str(service.create_batch_job(spec).id)
        self._known[job_id] = JobStatus(JobState.PENDING)
        return job_id

    def status(self, job_ids: Sequence[object]) -> list[JobStatus]:
        """In one request; as they were known where the service is away."""
        ids = [str(job_id) for job_id in job_ids]
        open_ids = [int(job_id) for job_id in ids if not self._known[job_id].terminal]
        try:
            self._refresh(open_ids)
        except ServiceUnavailable as error:
            log.warning("the states of blocks are as of before: %s", error)
        return [self._known[job_id] for job_id in ids]

    def cancel(self, job_ids: Sequence[object]) -> list[bool]:
        return [self._cancel(str(job_id)) for job_id in job_ids]

    def busy(self, job_ids: Sequence[str]) -> set[str]:
        """Those in which a task is running."""
        service, _ = self._connected()
        return {job_id for job_id in job_ids if service.count_jobs(batch_job_id=[int(job_id)], state="RUNNING")}

    def _refresh(self, ids: list[int]) -> None:
        service, _ = self._connected()
        for start in range(0, len(ids), MAX_PAGE):
            some = ids[start : start + MAX_PAGE]
            found = {record.id: record for record in service.batch_jobs(id=some, limit=MAX_PAGE).results}
            for batch_job_id in some:
                self._known[str(batch_job_id)] = self._status_of(found.get(batch_job_id))

    def _status_of(self, record: BatchJobRecord | None) -> JobStatus:
        status = status_of(record)
        if status.state is JobState.FAILED and self._logs is not None and record is not None:
            log_file = next(self._logs.glob(f"batch-job-{record.id}-*.log"), None)
            status.stderr_path = str(log_file) if log_file else None
        return status

    def _cancel(self, job_id: str) -> bool:
        service, _ = self._connected()
        try:
            service.patch_batch_job(int(job_id), BatchJobPatch(state=BatchJobState.PENDING_DELETION))
        except (NotFound, Conflict):
            log.debug("block %s had ended already", job_id)
        except ServiceUnavailable as error:
            log.warning("block %s could not be cancelled: %s", job_id, error)
            return False
        return True

    def _connected(self) -> tuple[Service, BatchJobSpec]:
        if self._service is None or self._spec is None:
            raise RuntimeError("the executor was not started")
        return self._service, self._spec


def status_of(record: BatchJobRecord | None) -> JobStatus:
    """A batch job in Parsl's words; None: it was deleted."""
    if record is None:
        return JobStatus(JobState.CANCELLED, "its batch job was deleted")
    if record.state not in BATCH_JOB_ENDED:
        return JobStatus(_STATES[record.state])
    info = record.status_info
    exit_code = info.get("exit_code")
    reason = str(info.get("error") or info.get("info") or "")
    message = f"batch job {record.id} {record.state}" + (f": {reason}" if reason else "")
    if record.state is BatchJobState.SUBMIT_FAILED:
        state = JobState.FAILED
    elif info.get("cancelled") or record.start_time is None:
        state = JobState.CANCELLED
    elif _was_used_up(record):
        state = JobState.TIMEOUT
    else:
        state = JobState.COMPLETED if exit_code == 0 else JobState.FAILED
    return JobStatus(state, message, exit_code)


def to_bring_back(tasks: int, slots: int, parallelism: float, *, alive: int, idled: int, limit: int) -> int:
    """How many of the `idled` blocks, which ended for want of work, are wanted again now that there are `tasks`.

    A block has `slots` for tasks; the measure is that of Parsl's strategies, of which "none" would leave it at that.
    """
    wanted = max(1, math.ceil(tasks * parallelism / slots)) if tasks else 0
    return max(0, min(wanted - alive, limit - alive, idled))


def _was_used_up(record: BatchJobRecord) -> bool:
    if record.start_time is None or record.end_time is None:
        return False
    return (record.end_time - record.start_time).total_seconds() >= 60 * record.wall_time_min - _MARGIN_SEC
