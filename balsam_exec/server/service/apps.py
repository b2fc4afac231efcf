"""Apps. Their code is opaque here: the service stores it and never loads it."""

from __future__ import annotations

import hashlib
from typing import Any

from balsam_exec.model.apps import AppPatch, AppSpec
from balsam_exec.model.errors import Conflict, NotFound
from balsam_exec.model.events import Kind
from balsam_exec.model.queries import Query
from balsam_exec.server.service.sizes import check_size
from balsam_exec.server.service.unit import Unit, hooks_at
from balsam_exec.server.store import apps as store
from balsam_exec.server.store import filters
from balsam_exec.server.store import sites as site_store
from balsam_exec.server.store.database import Connection

#: The fields of an app that have a column of their own; the others are in `spec`.
_COLUMNS = frozenset({"site_id", "name", "payload"})
#: What people read; it decides nothing, so it does not make another app.
_PROSE = frozenset({"description"})


def digest(spec: AppSpec) -> str:
    """SHA-256 over everything that decides what runs."""
    canonical = spec.model_dump_json(exclude=set(_PROSE | {"site_id"}), exclude_defaults=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _record(row: Any) -> dict[str, Any]:
    record: dict[str, Any] = {key: value for key, value in row._mapping.items() if key not in ("owner_id", "spec")}
    return {**row.spec, **record}


def create_app(unit: Unit, owner_id: int, spec: AppSpec) -> dict[str, Any]:
    """Raises NotFound (the site), TooLarge, Conflict when the site has an app of that name."""
    check_size(f"the app {spec.name}", spec.payload, unit.max_entity)
    _check_site(unit, owner_id, spec.site_id)
    if store.named(unit.connection, spec.site_id, spec.name) is not None:
        raise Conflict(f"site {spec.site_id} has an app {spec.name} already: PUT replaces it")
    return _insert(unit, owner_id, spec)


def put_app(unit: Unit, owner_id: int, spec: AppSpec) -> dict[str, Any]:
    """Create the app or replace the one of that site and name; the same app again changes nothing. Raises TooLarge."""
    check_size(f"the app {spec.name}", spec.payload, unit.max_entity)
    _check_site(unit, owner_id, spec.site_id)
    present = store.named(unit.connection, spec.site_id, spec.name)
    if present is None:
        return _insert(unit, owner_id, spec)
    values = _values(spec)
    if all(getattr(present, key) == value for key, value in values.items()):
        return _record(present)
    unit.record(owner_id, Kind.APP, present.id, spec.site_id, "", "updated")
    unit.topics.add(hooks_at(spec.site_id))  # its agent may be about to run what is replaced
    return _record(store.update_app(unit.connection, present.id, {**values, "last_update": unit.now}))


def _check_site(unit: Unit, owner_id: int, site_id: int) -> None:
    if site_store.site(unit.connection, owner_id, site_id, lock=True) is None:
        raise NotFound(f"there is no site {site_id}")


def _insert(unit: Unit, owner_id: int, spec: AppSpec) -> dict[str, Any]:
    values = {"owner_id": owner_id, "site_id": spec.site_id, "created": unit.now, "last_update": unit.now}
    row = store.insert_app(unit.connection, {**values, **_values(spec)})
    unit.record(owner_id, Kind.APP, row.id, spec.site_id, "", "updated")
    return _record(row)


def _values(spec: AppSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "payload": spec.payload,
        "spec": spec.model_dump(mode="json", exclude=set(_COLUMNS)),
        "digest": digest(spec),
    }


def _found(row: Any, app_id: int) -> Any:
    if row is None:
        raise NotFound(f"there is no app {app_id}")
    return row


def app(connection: Connection, owner_id: int, app_id: int) -> dict[str, Any]:
    return _record(_found(store.app(connection, owner_id, app_id), app_id))


def apps(connection: Connection, owner_id: int, query: Query) -> dict[str, Any]:
    return filters.page([_record(row) for row in store.listing(connection, owner_id, query)], query)


def rename_app(unit: Unit, owner_id: int, app_id: int, patch: AppPatch) -> dict[str, Any]:
    row = _found(store.app(unit.connection, owner_id, app_id, lock=True), app_id)
    other = store.named(unit.connection, row.site_id, patch.name)
    if other is not None and other.id != app_id:
        raise Conflict(f"site {row.site_id} has an app {patch.name} already (id {other.id})")
    spec = AppSpec(**{**row.spec, "site_id": row.site_id, "name": patch.name, "payload": row.payload})
    unit.record(owner_id, Kind.APP, app_id, row.site_id, "", "updated")
    values = {"name": patch.name, "digest": digest(spec), "last_update": unit.now}
    return _record(store.update_app(unit.connection, app_id, values))


def delete_app(unit: Unit, owner_id: int, app_id: int) -> None:
    """Raises Conflict while it has jobs."""
    row = _found(store.app(unit.connection, owner_id, app_id, lock=True), app_id)
    if store.has_jobs(unit.connection, app_id):
        raise Conflict(f"app {app_id} has jobs: delete them first")
    store.delete_app(unit.connection, app_id)
    unit.record(owner_id, Kind.APP, app_id, row.site_id, "", "deleted")
