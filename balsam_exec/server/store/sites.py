"""SQL of sites."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, delete, insert, or_, select, update

from balsam_exec.model.queries import Query
from balsam_exec.server.store import filters
from balsam_exec.server.store.schema import job_counts, jobs, sites
from balsam_exec.server.store.types import AnyRow

_FIELDS = {column.name: column for column in sites.c}


def insert_site(connection: Connection, values: dict[str, Any]) -> AnyRow:
    return connection.execute(insert(sites).values(values).returning(*sites.c)).one()


def site(connection: Connection, owner_id: int, site_id: int, *, lock: bool = False) -> AnyRow | None:
    query = select(sites).where(sites.c.id == site_id, sites.c.owner_id == owner_id)
    return connection.execute(query.with_for_update() if lock else query).one_or_none()


def named(connection: Connection, owner_id: int, name: str) -> AnyRow | None:
    query = select(sites).where(sites.c.name == name, sites.c.owner_id == owner_id)
    return connection.execute(query).one_or_none()


def listing(connection: Connection, owner_id: int, query: Query) -> list[AnyRow]:
    statement = select(sites).where(sites.c.owner_id == owner_id)
    statement = statement.where(*filters.conditions(filters.given(query), _FIELDS))
    return list(connection.execute(filters.paged(statement, query, _FIELDS, sites.c.id)))


def update_site(connection: Connection, site_id: int, values: dict[str, Any]) -> None:
    if values:
        connection.execute(update(sites).where(sites.c.id == site_id).values(values))


def take_agent(
    connection: Connection, owner_id: int, site_id: int, holders: list[str], now: int, values: dict[str, Any]
) -> AnyRow | None:
    """Set these values if nobody has the lease of the site, or one of the `holders`; the site then."""
    free = or_(sites.c.agent_holder.is_(None), sites.c.agent_holder.in_(holders), sites.c.agent_expires <= now)
    mine = (sites.c.id == site_id, sites.c.owner_id == owner_id)
    return connection.execute(update(sites).where(*mine, free).values(values).returning(*sites.c)).one_or_none()


def release_agent(connection: Connection, owner_id: int, site_id: int, holder: str) -> None:
    mine = (sites.c.id == site_id, sites.c.owner_id == owner_id, sites.c.agent_holder == holder)
    nobody = {"agent": None, "agent_holder": None, "agent_expires": None}
    connection.execute(update(sites).where(*mine).values(nobody))


def has_jobs(connection: Connection, site_id: int) -> bool:
    return connection.execute(select(jobs.c.id).where(jobs.c.site_id == site_id).limit(1)).scalar() is not None


def delete_site(connection: Connection, site_id: int) -> None:
    """With its apps, batch jobs and sessions."""
    connection.execute(delete(job_counts).where(job_counts.c.site_id == site_id))
    connection.execute(delete(sites).where(sites.c.id == site_id))
