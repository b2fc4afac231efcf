"""Sites."""

from __future__ import annotations

from typing import Any

from balsam_exec.model.errors import Conflict, NotFound
from balsam_exec.model.events import Kind
from balsam_exec.model.queries import Query
from balsam_exec.model.sites import AgentBeat, AgentRecord, SitePatch, SiteRecord, SiteSpec
from balsam_exec.server.service.unit import Unit
from balsam_exec.server.store import filters
from balsam_exec.server.store import sites as store
from balsam_exec.server.store.database import Connection
from balsam_exec.server.store.types import micros

#: The fields of a site that have a column of their own; the others are in `settings`.
_COLUMNS = frozenset({"name", "path", "hostname"})
_DEFAULTS = SiteSpec(name="any").model_dump(exclude=set(_COLUMNS))


def _record(row: Any, now: int) -> dict[str, Any]:
    record = {key: value for key, value in row._mapping.items() if key in SiteRecord.model_fields}
    record["agent"] = agent = _agent(row)
    record["active"] = agent is not None and micros(agent["expires"]) > now
    return {**_DEFAULTS, **row.settings, **record}


def _agent(row: Any) -> dict[str, Any] | None:
    if row.agent_holder is None:
        return None
    return {**row.agent, "holder": row.agent_holder, "expires": row.agent_expires}


def _not_found(site_id: int) -> NotFound:
    return NotFound(f"there is no site {site_id}")


def create_site(unit: Unit, owner_id: int, spec: SiteSpec) -> dict[str, Any]:
    """Raises Conflict when the owner has a site of that name."""
    _check_name(unit, owner_id, spec.name)
    values = {
        "owner_id": owner_id,
        "created": unit.now,
        **spec.model_dump(include=set(_COLUMNS)),
        "settings": spec.model_dump(exclude=set(_COLUMNS), exclude_defaults=True),
    }
    row = store.insert_site(unit.connection, values)
    unit.record(owner_id, Kind.SITE, row.id, row.id, "", "updated")
    return _record(row, unit.now)


def _check_name(unit: Unit, owner_id: int, name: str, site_id: int | None = None) -> None:
    other = store.named(unit.connection, owner_id, name)
    if other is not None and other.id != site_id:
        raise Conflict(f"you have a site {name!r} already (id {other.id})", site_id=other.id)


def site(connection: Connection, owner_id: int, site_id: int, now: int) -> dict[str, Any]:
    row = store.site(connection, owner_id, site_id)
    if row is None:
        raise _not_found(site_id)
    return _record(row, now)


def sites(connection: Connection, owner_id: int, query: Query, now: int) -> dict[str, Any]:
    return filters.page([_record(row, now) for row in store.listing(connection, owner_id, query)], query)


def patch_site(unit: Unit, owner_id: int, site_id: int, patch: SitePatch) -> dict[str, Any]:
    """A mere sign of life makes no event."""
    row = store.site(unit.connection, owner_id, site_id, lock=True)
    if row is None:
        raise _not_found(site_id)
    changes = patch.model_dump(exclude_none=True, exclude={"refresh"})
    values = {key: value for key, value in changes.items() if key in _COLUMNS}
    if "name" in values:
        _check_name(unit, owner_id, values["name"], site_id)
    if len(values) < len(changes):
        rest = {key: value for key, value in changes.items() if key not in _COLUMNS}
        values["settings"] = {**row.settings, **rest}
    if changes:
        unit.record(owner_id, Kind.SITE, site_id, site_id, "", "updated")
    if patch.refresh is not None:
        values["last_refresh"] = unit.now
    store.update_site(unit.connection, site_id, values)
    return site(unit.connection, owner_id, site_id, unit.now)


def delete_site(unit: Unit, owner_id: int, site_id: int) -> None:
    """With its apps and batch jobs. Raises Conflict while it has jobs."""
    if store.site(unit.connection, owner_id, site_id, lock=True) is None:
        raise _not_found(site_id)
    if store.has_jobs(unit.connection, site_id):
        raise Conflict(f"site {site_id} has jobs: delete them first")
    store.delete_site(unit.connection, site_id)
    unit.record(owner_id, Kind.SITE, site_id, site_id, "", "deleted")


def beat(unit: Unit, owner_id: int, site_id: int, sign: AgentBeat) -> dict[str, Any]:
    """Take or keep the lease of the site for this agent: nobody has it, or it has, or whoever has it was not heard of
    for too long or is said to have ended. Raises Conflict, with the agent that has it as `detail["agent"]`."""
    holders = [sign.holder, *([sign.replaces] if sign.replaces else [])]
    values = {
        "agent": sign.model_dump(mode="json", exclude={"holder", "replaces", "ttl_sec"}),
        "agent_holder": sign.holder,
        "agent_expires": unit.now + round(sign.ttl_sec * 1_000_000),
        "last_refresh": unit.now,
    }
    row = store.take_agent(unit.connection, owner_id, site_id, holders, unit.now, values)
    if row is None:
        raise _taken(site(unit.connection, owner_id, site_id, unit.now), unit.now)
    return _record(row, unit.now)


def _taken(record: dict[str, Any], now: int) -> Conflict:
    agent = AgentRecord.model_validate(record["agent"])
    silent = round((now - micros(record["last_refresh"])) / 1_000_000)
    left = max(1, round((micros(agent.expires) - now) / 1_000_000))
    return Conflict(
        f"site {record['name']} (id {record['id']}) is served by another agent: on {agent.hostname}, pid {agent.pid}, "
        f"heard of {silent} s ago. Stop it there with `balsam site stop`; if it is gone, try again in {left} s",
        agent=agent.model_dump(mode="json", exclude={"parts"}),
    )


def release(unit: Unit, owner_id: int, site_id: int, holder: str) -> None:
    """The agent has ended, if it was this one."""
    store.release_agent(unit.connection, owner_id, site_id, holder)
