"""Why a job is where it is: gathers the facts that matter in its state, in a few statements."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from balsam_exec.model.errors import NotFound
from balsam_exec.model.sessions import Room
from balsam_exec.model.states import RUNNABLE, BatchJobState, JobState, OnParentFailure, Step
from balsam_exec.server.service import reasons
from balsam_exec.server.service.facts import Facts, Happened, Lease
from balsam_exec.server.service.places import Demand, Place
from balsam_exec.server.store import explain as store
from balsam_exec.server.store.database import Connection
from balsam_exec.server.store.types import micros, moment

#: Parents that are named.
PARENTS = 10
#: Events that are looked at: more than one run of a job has.
EVENTS = 30
#: Before the end of an allocation its launcher ends its jobs and takes no more.
WIND_DOWN = timedelta(seconds=15)
_S = JobState


def explain(connection: Connection, owner_id: int, job_id: int, now: int) -> dict[str, Any]:
    """An Explanation as of `now`, in microseconds since 1970. Raises NotFound."""
    job = store.job(connection, owner_id, job_id)
    if job is None:
        raise NotFound(f"there is no job {job_id}")
    return reasons.explain(gather(connection, owner_id, job, moment(now))).model_dump(mode="json")


def gather(connection: Connection, owner_id: int, job: Any, now: datetime) -> Facts:
    """What may keep the job where it is; `job` is a row of `store.job`."""
    state = JobState(job.state)
    bearing: dict[str, Any] = {"history": _history(connection, owner_id, job.id)}
    if state is _S.AWAITING_PARENTS:
        bearing |= _parents(connection, job.id)
    elif state in (_S.READY, _S.POSTPROCESSED):
        direction = "in" if state is _S.READY else "out"
        rows = store.unfinished_transfers(connection, job.id, direction)
        bearing["transfers"] = [(row.id, row.state, str(row.transfer_info.get("error", ""))) for row in rows]
    elif state in RUNNABLE and job.session_id is None:
        bearing |= _places(connection, job.site_id, now)
        bearing["ahead"] = store.ahead(connection, job, reasons.MANY + 1)
    elif state not in RUNNABLE:
        bearing["queue"] = store.in_state(connection, job.site_id, state)
    return Facts(
        now=now,
        job_id=job.id,
        state=state,
        steps=Step(job.steps),
        demand=_demand(job),
        on_parent_failure=OnParentFailure(job.on_parent_failure),
        app=job.app_name,
        site=job.site_name,
        agent_heard=job.last_refresh,
        changed=job.last_update,
        batch_job_id=job.batch_job_id,
        return_code=job.return_code,
        lease=None if job.session_id is None else _lease(job),
        **bearing,
    )


def _demand(job: Any) -> Demand:
    return Demand(
        nodes=job.num_nodes,
        ranks_per_node=job.ranks_per_node,
        gpus_per_node=job.ranks_per_node * job.gpus_per_rank,
        minutes=job.wall_time_min,
        tags=job.tags,
    )


def _lease(job: Any) -> Lease:
    return Lease(
        batch_job_id=job.session_batch_job_id,
        heard=job.expires - timedelta(microseconds=job.ttl),
        expires=job.expires,
        kill_ordered=job.kill_requested,
    )


def _history(connection: Connection, owner_id: int, job_id: int) -> list[Happened]:
    rows = store.last_events(connection, owner_id, job_id, EVENTS)
    return [Happened(row.from_state, row.to_state, row.timestamp, row.data) for row in rows]


def _parents(connection: Connection, job_id: int) -> dict[str, Any]:
    counts = {JobState(state): count for state, count in store.parent_counts(connection, job_id).items()}
    some = store.unfinished_parents(connection, job_id, PARENTS)
    return {"parents": counts, "waiting_for": [(row.id, JobState(row.state)) for row in some]}


def _places(connection: Connection, site_id: int, now: datetime) -> dict[str, Any]:
    """The allocations of a site: those whose launcher is there, those that run without one, those that wait."""
    allocations = {row.id: row for row in store.living_batch_jobs(connection, site_id)}
    sessions = store.living_sessions(connection, site_id, micros(now))
    served = {session.batch_job_id for session in sessions}
    others = [row for row in allocations.values() if row.id not in served]
    waiting = _in(others, BatchJobState.PENDING_SUBMISSION, BatchJobState.QUEUED)
    return {
        "places": [_place(session, allocations.get(session.batch_job_id), now) for session in sessions],
        "starting": [_allocation(row, now) for row in _in(others, BatchJobState.RUNNING)],
        "queued": [_allocation(row, now) for row in waiting],
        "unsubmitted": len(_in(waiting, BatchJobState.PENDING_SUBMISSION)),
    }


def _in(rows: Iterable[Any], *states: BatchJobState) -> list[Any]:
    return [row for row in rows if row.state in states]


def _place(session: Any, allocation: Any, now: datetime) -> Place:
    """What its launcher said of itself goes before what its allocation lets expect."""
    place = Place(name=f"session {session.id}") if allocation is None else _allocation(allocation, now)
    place = replace(place, held=session.held)
    if not session.room:
        return place
    room = Room.model_validate(session.room)
    return replace(
        place,
        nodes=room.max_nodes,
        gpus_per_node=room.max_gpus_per_node,
        serial_only=room.serial_only,
        filter_tags=room.filter_tags,
    )


def _allocation(row: Any, now: datetime) -> Place:
    left = timedelta(minutes=row.wall_time_min)
    if row.start_time is not None:
        left -= max(timedelta(0), now - row.start_time) + WIND_DOWN
    return Place(
        name=f"batch job {row.id}",
        nodes=row.num_nodes,
        minutes=max(0, left // timedelta(minutes=1)),
        serial_only=row.job_mode == "serial",
        filter_tags=row.settings.get("filter_tags", {}),
    )
