"""Batch jobs: allocations that a site requests from its scheduler."""

from __future__ import annotations

from typing import Any

from balsam_exec.model.batch_jobs import BatchJobPatch, BatchJobSpec
from balsam_exec.model.errors import Conflict, IllegalTransition, NotFound
from balsam_exec.model.events import Kind
from balsam_exec.model.queries import Query
from balsam_exec.model.states import BATCH_JOB_ENDED, BATCH_JOB_TRANSITIONS, BatchJobState
from balsam_exec.server.service.leases import end_session
from balsam_exec.server.service.unit import Unit
from balsam_exec.server.store import batch_jobs as store
from balsam_exec.server.store import filters
from balsam_exec.server.store import leases as lease_store
from balsam_exec.server.store import sites as site_store
from balsam_exec.server.store.database import Connection

#: The fields of a spec that have a column of their own; the others are in `settings`.
_COLUMNS = frozenset({"site_id", "queue", "project", "job_mode", "num_nodes", "wall_time_min"})
_DEFAULTS: dict[str, Any] = {
    "optional_params": {},
    "filter_tags": {},
    "partitions": [],
    "idle_ttl_sec": None,
    "origin": "user",
}


def _record(row: Any) -> dict[str, Any]:
    record: dict[str, Any] = {key: value for key, value in row._mapping.items() if key not in ("owner_id", "settings")}
    return {**_DEFAULTS, **row.settings, **record}


def create_batch_job(unit: Unit, owner_id: int, spec: BatchJobSpec) -> dict[str, Any]:
    if site_store.site(unit.connection, owner_id, spec.site_id) is None:
        raise NotFound(f"there is no site {spec.site_id}")
    state = BatchJobState.PENDING_SUBMISSION
    values = {
        "owner_id": owner_id,
        "state": state.value,
        "created": unit.now,
        **spec.model_dump(include=set(_COLUMNS)),
        "settings": spec.model_dump(exclude=set(_COLUMNS), exclude_defaults=True),
    }
    row = store.insert_batch_job(unit.connection, values)
    unit.record(owner_id, Kind.BATCH_JOB, row.id, spec.site_id, "", state)
    return _record(row)


def _found(row: Any, batch_job_id: int) -> Any:
    if row is None:
        raise NotFound(f"there is no batch job {batch_job_id}")
    return row


def batch_job(connection: Connection, owner_id: int, batch_job_id: int) -> dict[str, Any]:
    return _record(_found(store.batch_job(connection, owner_id, batch_job_id), batch_job_id))


def batch_jobs(connection: Connection, owner_id: int, query: Query) -> dict[str, Any]:
    return filters.page([_record(row) for row in store.listing(connection, owner_id, query)], query)


def patch_batch_job(unit: Unit, owner_id: int, batch_job_id: int, patch: BatchJobPatch) -> dict[str, Any]:
    """One that has ended takes its sessions with it. Raises IllegalTransition; the same state again is no change."""
    row = _found(store.batch_job(unit.connection, owner_id, batch_job_id, lock=True), batch_job_id)
    values = patch.model_dump(exclude_none=True)
    target = values.get("state")
    if target is not None and target != row.state:
        source = BatchJobState(row.state)
        if (source, target) not in BATCH_JOB_TRANSITIONS:
            legal = ", ".join(sorted(t for f, t in BATCH_JOB_TRANSITIONS if f is source)) or "nothing"
            raise IllegalTransition(f"a batch job cannot go from {source} to {target}; from here: {legal}")
        unit.record(owner_id, Kind.BATCH_JOB, row.id, row.site_id, source, target, data=values.get("status_info", {}))
        if target in BATCH_JOB_ENDED:
            end_sessions(unit, batch_job_id, f"its batch job {batch_job_id} ended: {target}")
    if values:
        row = store.update_batch_job(unit.connection, batch_job_id, values)
    return _record(row)


def end_sessions(unit: Unit, batch_job_id: int, reason: str) -> None:
    for session_id in lease_store.of_batch_job(unit.connection, batch_job_id):
        end_session(unit, session_id, reason)


def delete_batch_job(unit: Unit, owner_id: int, batch_job_id: int) -> None:
    """Forget one that has ended. Raises Conflict for another: the site has yet to cancel it."""
    row = _found(store.batch_job(unit.connection, owner_id, batch_job_id, lock=True), batch_job_id)
    if row.state not in BATCH_JOB_ENDED:
        raise Conflict(f"batch job {batch_job_id} is {row.state}: set it to pending_deletion and wait until it ended")
    store.delete_batch_job(unit.connection, batch_job_id)
    unit.record(owner_id, Kind.BATCH_JOB, batch_job_id, row.site_id, row.state, "deleted")
