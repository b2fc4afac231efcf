"""Leases: acquiring jobs, reporting on them, and what happens when a session ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple, Self

from balsam_exec.model.errors import IllegalTransition, NotFound, StaleLease
from balsam_exec.model.jobs import Result
from balsam_exec.model.sessions import AcquireRequest, Heartbeat, Report
from balsam_exec.model.states import RUNNABLE, WAITING, Actor, JobState, check
from balsam_exec.server.hub import Hub
from balsam_exec.server.service.moves import Moves
from balsam_exec.server.service.sizes import check_size
from balsam_exec.server.service.unit import Unit, room_of, work_at
from balsam_exec.server.store import jobs as job_store
from balsam_exec.server.store import leases as store
from balsam_exec.server.store.jobs import JobRow
from balsam_exec.server.store.types import micros

#: Bytes of arguments in one answer.
BUDGET = 32 * 1024 * 1024
#: So much of a node is nothing.
_NOTHING = 1e-9
#: Sessions of which is remembered that there was nothing more for them.
_SESSIONS = 1000

#: The states a job may have come to after a launcher reported the one on the left.
_s = JobState
_AFTER = {
    _s.RUN_DONE: {_s.RUN_DONE, _s.POSTPROCESSED, _s.STAGED_OUT, _s.JOB_FINISHED, _s.USER_KILLED},
    _s.RUN_ERROR: {_s.RUN_ERROR, _s.RESTART_READY, _s.AWAITING_PARENTS, _s.FAILED, _s.USER_KILLED},
    _s.RUN_TIMEOUT: {_s.RUN_TIMEOUT, _s.RESTART_READY, _s.AWAITING_PARENTS, _s.FAILED, _s.USER_KILLED},
    _s.USER_KILLED: {_s.USER_KILLED},
}
_AFTER[JobState.RUNNING] = {JobState.RUNNING, *(state for after in _AFTER.values() for state in after)}


class Verdict(Enum):
    """What to do with a report."""

    APPLY = 1
    REPETITION = 2  #: recorded before; the answer was lost
    STALE = 3  #: the lease is over


class Lease(NamedTuple):
    """What an acquire gave, and what one needs to wait for more."""

    jobs: list[dict[str, Any]]
    site_id: int
    ttl_sec: float
    drained: bool  #: there was no other job that fits


class Asked(NamedTuple):
    """What an acquire asks for, whatever the number, and the key of the call."""

    owner_id: int
    request: AcquireRequest
    key: str | None

    @classmethod
    def by(cls, owner_id: int, request: AcquireRequest, key: str | None) -> Self:
        whatever = {"max_jobs": 1, "max_aggregate_nodes": None, "timeout": 0.0}
        return cls(owner_id, request.model_copy(update=whatever), key)


class Drained:
    """The sessions whose last acquire took all there was: until more comes up, the next one need not even look."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._found: dict[int, tuple[Asked, int, Lease]] = {}

    def note(self, session_id: int, asked: Asked, generation: int, lease: Lease) -> None:
        """What an acquire gave that began at that generation of the hub."""
        self._found.pop(session_id, None)
        if lease.drained:
            self._found[session_id] = asked, generation, lease._replace(jobs=[])
            if len(self._found) > _SESSIONS:
                del self._found[next(iter(self._found))]

    def known(self, session_id: int, asked: Asked, *, goes_on: bool = False) -> Lease | None:
        """The answer to an acquire that would find nothing; not to a call that is repeated, its answer was lost,
        unless it just goes on."""
        if session_id not in self._found:
            return None
        before, generation, lease = self._found[session_id]
        if before[:2] != asked[:2] or (before.key == asked.key and not goes_on):
            return None
        return lease if self._hub.quiet_since(generation, [work_at(lease.site_id)]) else None


def judge(job: JobRow, report: Report, session_id: int) -> Verdict:
    """What a report on the job by the session means. Raises IllegalTransition for what a launcher may not do."""
    if report.epoch != job.epoch or job.session_id not in (None, session_id):
        return Verdict.STALE
    if job.session_id is None:  # ended by this launcher: by what it reports here once more, or it made a mistake
        reached = report.state is None or job.state in _AFTER.get(report.state, ())
        return Verdict.REPETITION if reached else Verdict.STALE
    if report.state is job.state:  # RUNNING, the only state that a leased job can be reported in twice
        return Verdict.REPETITION
    if report.state is None and job.state in RUNNABLE:
        return Verdict.APPLY
    check(job.state, report.state or JobState.PREPROCESSED, Actor.LAUNCHER)
    if report.state is JobState.USER_KILLED and not job.kill_requested:
        raise IllegalTransition(f"nobody has ordered to kill job {job.id}", job_id=job.id)
    return Verdict.APPLY


def _living(unit: Unit, owner_id: int, session_id: int) -> Any:
    session = store.touch(unit.connection, owner_id, session_id, unit.now)
    if session is None:
        raise NotFound(f"there is no session {session_id}: it was closed or has expired; open a new one")
    return session


def heartbeat(unit: Unit, owner_id: int, session_id: int) -> dict[str, Any]:
    """Extend the session; its orders."""
    session = session_record(_living(unit, owner_id, session_id))
    return {**session, "kill": store.to_kill(unit.connection, session_id)}


def has_news(session: dict[str, Any], heard: Heartbeat) -> bool:
    """Whether there is an order that its launcher has not heard of."""
    return bool(session["kill"].items() - heard.killing.items())


def session_record(row: Any) -> dict[str, Any]:
    return {
        "id": row.id,
        "site_id": row.site_id,
        "batch_job_id": row.batch_job_id,
        "expires": row.expires,
        "ttl_sec": row.ttl / 1_000_000,
    }


def acquire(
    unit: Unit,
    owner_id: int,
    session_id: int,
    request: AcquireRequest,
    key: str | None = None,
    *,
    stands: bool = False,
    goes_on: bool = False,
) -> Lease:
    """Lease what fits the request. With the key of the last call that gave something, the same is given again.

    A call that `stands` gives several times, and then `goes_on`; again it gives all that the session holds.
    """
    session = _living(unit, owner_id, session_id)
    again = key is not None and session.acquire_key == key and not goes_on
    ids, drained = (store.acquired(unit.connection, session_id) if again else []), False
    if not ids:
        bounds = store.Bounds(unit.now, BUDGET, unit.max_entity)
        ids, drained = store.lease(unit.connection, session.site_id, session_id, request, bounds)
        if ids and key is not None and session.acquire_key != key:
            store.remember(unit.connection, session_id, key, None if stands else ids)
    jobs = store.leased(unit.connection, session_id, ids) if ids else []
    for job in jobs:
        job["restarted"] = job.pop("state") == JobState.RESTART_READY
    return Lease(jobs, session.site_id, session.ttl / 1_000_000, drained)


def rest_of(request: AcquireRequest, given: Sequence[Mapping[str, Any]], timeout: float) -> AcquireRequest | None:
    """What is left to give when these jobs are given, within a new timeout; None if it is nothing."""
    nodes = request.max_aggregate_nodes
    if nodes is not None:
        nodes -= sum(job["num_nodes"] / job["node_packing_count"] for job in given)
    rest = {"max_jobs": request.max_jobs - len(given), "max_aggregate_nodes": nodes, "timeout": timeout}
    nothing = rest["max_jobs"] == 0 or (nodes is not None and nodes <= _NOTHING)
    return None if nothing else request.model_copy(update=rest)


def report(unit: Unit, owner_id: int, session_id: int, reports: Sequence[Report], widen: bool = False) -> None:
    """Record what happened to leased jobs; all of it, or nothing. With `widen` wake the acquire that waits.

    Raises StaleLease naming the jobs whose lease is over, IllegalTransition, TooLarge, NotFound (the session).
    """
    session = _living(unit, owner_id, session_id)
    jobs = job_store.lock(unit.connection, owner_id, (report.job_id for report in reports))
    moves, stale, results = Moves(unit), set(), []
    for item in reports:
        job = jobs.get(item.job_id)
        verdict = Verdict.STALE if job is None else judge(job, item, session_id)
        if job is None or verdict is Verdict.STALE:
            stale.add(item.job_id)
        elif verdict is Verdict.APPLY:
            if item.result is not None:
                check_size(f"the result of job {job.id}", item.result.value, unit.max_entity)
                check_size(f"the exception of job {job.id}", item.result.exception, unit.max_entity)
            result = _apply(moves, job, item, session.batch_job_id)
            if result is not None:
                results.append(result)
    if stale:
        listed = ", ".join(map(str, sorted(stale)[:10]))
        raise StaleLease(f"these jobs no longer belong to session {session_id}: {listed}", job_ids=sorted(stale))
    moves.flush()
    unit.insert_results(results)
    if widen:
        unit.topics.add(room_of(session_id))


def _apply(moves: Moves, job: JobRow, item: Report, batch_job_id: int | None) -> tuple[Any, ...] | None:
    """Move the job as reported. The row of its result, where there is one."""
    if item.state is None:
        moves.free(job, None, taken=False)
        return None
    at = micros(item.timestamp)
    if item.state is JobState.RUNNING:
        job.batch_job_id = batch_job_id
        moves.hop(job, item.state, at=at, data=item.data)
    else:
        job.return_code = _return_code(item.result, item.data)
        moves.free(job, item.state, taken=False, at=at, data=item.data)
    if item.result is None or job.state is JobState.USER_KILLED or job.state in WAITING:
        return None
    result = item.result
    return (
        *(job.id, result.ok, result.value, result.exception),
        *(result.error, result.reason, job.return_code),
    )


def _return_code(result: Result | None, data: Mapping[str, Any]) -> int | None:
    code = data.get("return_code") if result is None or result.return_code is None else result.return_code
    return code if isinstance(code, int) and abs(code) < 2**63 else None


def end_session(unit: Unit, session_id: int, reason: str) -> None:
    """Take the session's jobs from it and remove it: running ones time out, the others are just free again; those that
    it was to kill are killed, for nothing of them can be left or nobody can do more."""
    if store.lock_session(unit.connection, session_id) is None:
        return
    moves = Moves(unit)
    for job in job_store.lock_leased(unit.connection, session_id):
        timed_out = job.state is JobState.RUNNING and not job.kill_requested
        moves.free(job, JobState.RUN_TIMEOUT if timed_out else None, taken=True, data={"reason": reason})
    moves.flush()
    store.delete_session(unit.connection, session_id)


def expire_session(unit: Unit, session_id: int) -> None:
    """What the reaper does, unless the session has been extended in the meantime."""
    session = store.lock_session(unit.connection, session_id)
    if session is not None and micros(session.expires) <= unit.now:
        end_session(unit, session_id, f"session {session_id} expired: its launcher was not heard of")
