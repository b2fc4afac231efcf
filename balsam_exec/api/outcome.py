"""How jobs end: waiting for it, and what it gives."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from balsam_exec.api.completion import DELETED, Ended
from balsam_exec.apps.payload import load_result
from balsam_exec.client.service import CHUNK_IDS, Service
from balsam_exec.model.errors import DoesNotExist, InvalidRequest, JobCancelled, JobFailed
from balsam_exec.model.events import Kind
from balsam_exec.model.states import TERMINAL, JobState

if TYPE_CHECKING:
    from balsam_exec.api.jobs import Job

#: How many results are asked for at once: a few round trips for many jobs, and not too much memory for large results.
RESULTS_AT_ONCE = 100


def ended(jobs: Sequence[Job], timeout: float | None) -> Iterator[list[Job]]:
    """The jobs in groups as they end, each once, with their latest records.

    Raises TimeoutError after `timeout` seconds (those that ended by then were given), DoesNotExist for a deleted job.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    pending: dict[int, list[Job]] = {}
    known = []
    for job in jobs:
        if job._record is not None and job._record.state in TERMINAL:
            known.append(job)
        else:
            pending.setdefault(job._saved_id(), []).append(job)
    if known:
        yield known
    if not pending:
        return
    clients = {id(job._own_client): job._own_client for some in pending.values() for job in some}
    if len(clients) > 1:
        raise InvalidRequest("these jobs are of several services: wait for each service's by themselves")
    [client] = clients.values()
    with client.completions.watch(Kind.JOB, pending) as watch:
        group = _look(client.service, pending, list(pending))
        while True:
            if group:
                yield grouped(group)
            if not pending:
                return
            try:
                told = watch.next(None if deadline is None else deadline - time.monotonic())
            except TimeoutError:
                raise TimeoutError(f"{len(pending)} of {len(jobs)} jobs have not ended after {timeout} s") from None
            group = _look(client.service, pending, _ids(told))


def value_of(job: Job) -> Any:
    """What an ended job returned, or its failure raised."""
    if job.state is JobState.USER_KILLED:
        raise JobCancelled(f"job {job.id} was killed by its owner; set its state to RESTART_READY to run it after all")
    if job._result is None:
        wanted = [one for one in job._group if one._result is None and one is not job][: RESULTS_AT_ONCE - 1]
        found = job._own_client.service.results([job.id, *(one.id for one in wanted)])
        for one in (job, *wanted):
            one._result = found.get(one.id)
    if job.state is JobState.JOB_FINISHED:
        return None if job._result is None else load_result(job._result)
    if job._result is not None and not job._result.ok:
        return load_result(job._result)
    raise JobFailed(_why(job))


def _why(job: Job) -> str:
    """Of a job that failed at its site, before or after it ran: what its last event says."""
    events = job._own_client.service.events(job_id=job.id, to_state=JobState.FAILED, ordering="-id", limit=1).results
    said = events[0].data if events else {}
    reason = "; ".join(f"{key}: {value}" for key, value in said.items()) or "no reason was given"
    return f"job {job.id} failed: {reason}"


def _ids(told: Sequence[Ended]) -> list[int]:
    for one in told:
        if one.state == DELETED:
            raise DoesNotExist(f"job {one.id} was deleted while it was waited for")
    return [one.id for one in told]


def _look(service: Service, pending: dict[int, list[Job]], ids: Collection[int]) -> list[Job]:
    """Take the present records of these jobs; those that have ended leave `pending`."""
    wanted = [job_id for job_id in dict.fromkeys(ids) if job_id in pending]
    over: list[Job] = []
    for start in range(0, len(wanted), CHUNK_IDS):
        some = wanted[start : start + CHUNK_IDS]
        records = {record.id: record for record in service.jobs(id=some, limit=CHUNK_IDS).results}
        for job_id in some:
            if (record := records.get(job_id)) is None:
                raise DoesNotExist(f"job {job_id} does not exist (any more)")
            for job in pending[job_id]:
                job._seen(record)
            if record.state in TERMINAL:
                over += pending.pop(job_id)
    return over


def grouped(jobs: list[Job]) -> list[Job]:
    """Ask for the results of these jobs together, once one is wanted."""
    for job in jobs:
        job._group = jobs
    return jobs
