"""Batch jobs: allocations that a site requests from its scheduler."""

from __future__ import annotations

from typing import Any

from balsam_exec.model.batch_jobs import BatchJobPatch, BatchJobRecord, BatchJobSpec
from balsam_exec.model.errors import Conflict, IllegalTransition, NotFound
from balsam_exec.model.events import Kind
from balsam_exec.model.queries import Query
from balsam_exec.model.states import BATCH_JOB_ENDED, BATCH_JOB_TRANSITIONS, BatchJobState
from balsam_exec.server.service import requests
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
#: What may come with a patch from the agent and is no column.
_VERDICT = frozenset({"refused"})


def _record(row: Any) -> dict[str, Any]:
    record: dict[str, Any] = {key: value for key, value in row._mapping.items() if key not in ("owner_id", "settings")}
    return {**_DEFAULTS, **row.settings, **record, "submitted": record["submitted"] or None}


def create_batch_job(unit: Unit, owner_id: int, spec: BatchJobSpec) -> dict[str, Any]:
    """Raises NotAllowed for what the site does not let allocations ask for."""
    spec = _allowed(unit, owner_id, spec, new=True)
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


def _allowed(unit: Unit, owner_id: int, spec: BatchJobSpec, *, new: bool) -> BatchJobSpec:
    """The same with the site's defaults. A `new` one in its queue must find room there."""
    site = site_store.site(unit.connection, owner_id, spec.site_id, lock=new)  # so that no two take the last place
    if site is None:
        raise NotFound(f"there is no site {spec.site_id}")
    allowed = requests.allowed_of(site.settings)
    limited = new and allowed.max_queued_jobs(spec.queue) is not None
    others = store.living(unit.connection, spec.site_id, spec.queue) if limited else 0
    completed = spec.model_copy(update={"optional_params": allowed.completed(spec.optional_params)})
    requests.check_allowed(site.name, allowed, completed, others)
    return completed


def _found(row: Any, batch_job_id: int) -> Any:
    if row is None:
        raise NotFound(f"there is no batch job {batch_job_id}")
    return row


def batch_job(connection: Connection, owner_id: int, batch_job_id: int) -> dict[str, Any]:
    return _record(_found(store.batch_job(connection, owner_id, batch_job_id), batch_job_id))


def batch_jobs(connection: Connection, owner_id: int, query: Query) -> dict[str, Any]:
    return filters.page([_record(row) for row in store.listing(connection, owner_id, query)], query)


def patch_batch_job(unit: Unit, owner_id: int, batch_job_id: int, patch: BatchJobPatch) -> dict[str, Any]:
    """What it asks for can change until it runs; its site's agent has the scheduler follow, and where that does not
    want to, the record goes back. One that has ended takes its sessions with it.

    Raises IllegalTransition, Conflict, NotAllowed. The same state again is no change.
    """
    row = _found(store.batch_job(unit.connection, owner_id, batch_job_id, lock=True), batch_job_id)
    record = BatchJobRecord.model_validate(_record(row))
    values = patch.model_dump(exclude_none=True, exclude=set(requests.WANTED | _VERDICT))
    for change in (_changed(unit, owner_id, record, patch), requests.settled(record, patch)):
        if change is not None:
            values |= change.values
            unit.record(owner_id, Kind.BATCH_JOB, row.id, row.site_id, row.state, row.state, data=change.data)
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
        row = store.update_batch_job(unit.connection, batch_job_id, _columns(row, values))
    return _record(row)


def _changed(unit: Unit, owner_id: int, record: BatchJobRecord, patch: BatchJobPatch) -> requests.Change | None:
    wanted = requests.changed_by_user(record, patch)
    if wanted is None:
        return None
    return requests.change(record, _allowed(unit, owner_id, wanted, new=wanted.queue != record.queue))


def _columns(row: Any, values: dict[str, Any]) -> dict[str, Any]:
    """The fields as columns: those that have none of their own are in `settings`."""
    rest = {name: value for name, value in values.items() if name in _DEFAULTS}
    own = {name: value for name, value in values.items() if name not in _DEFAULTS}
    return {**own, "settings": {**row.settings, **rest}} if rest else own


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
