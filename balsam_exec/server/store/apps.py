"""SQL of apps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Text, bindparam, delete, insert, select, type_coerce, update

from balsam_exec.model.queries import Query
from balsam_exec.server.store import filters
from balsam_exec.server.store.dialect import any_of
from balsam_exec.server.store.prepared import Prepared
from balsam_exec.server.store.schema import apps, jobs, sites
from balsam_exec.server.store.types import AnyRow, IdList

_FIELDS = {column.name: column for column in apps.c}

_FOR_JOBS = Prepared(
    select(
        *(apps.c.id, apps.c.site_id, apps.c.name),
        *(type_coerce(column, Text) for column in (apps.c.spec, sites.c.settings)),
    )
    .join(sites, sites.c.id == apps.c.site_id)
    .where(any_of(apps.c.id, bindparam("ids", type_=IdList())), apps.c.owner_id == bindparam("owner"))
)


def for_jobs(connection: Connection, owner_id: int, ids: Iterable[int]) -> list[Any]:
    """(id, site_id, name, spec, site's settings) of those of the apps that are the owner's; the last two as JSON."""
    return list(_FOR_JOBS.rows(connection, {"ids": sorted(set(ids)), "owner": owner_id}))


def insert_app(connection: Connection, values: dict[str, Any]) -> AnyRow:
    return connection.execute(insert(apps).values(values).returning(*apps.c)).one()


def app(connection: Connection, owner_id: int, app_id: int, *, lock: bool = False) -> AnyRow | None:
    query = select(apps).where(apps.c.id == app_id, apps.c.owner_id == owner_id)
    return connection.execute(query.with_for_update() if lock else query).one_or_none()


def named(connection: Connection, site_id: int, name: str) -> AnyRow | None:
    query = select(apps).where(apps.c.site_id == site_id, apps.c.name == name).with_for_update()
    return connection.execute(query).one_or_none()


def listing(connection: Connection, owner_id: int, query: Query) -> list[AnyRow]:
    statement = select(apps).where(apps.c.owner_id == owner_id)
    statement = statement.where(*filters.conditions(filters.given(query), _FIELDS))
    return list(connection.execute(filters.paged(statement, query, _FIELDS, apps.c.id)))


def update_app(connection: Connection, app_id: int, values: dict[str, Any]) -> AnyRow:
    return connection.execute(update(apps).where(apps.c.id == app_id).values(values).returning(*apps.c)).one()


def has_jobs(connection: Connection, app_id: int) -> bool:
    return connection.execute(select(jobs.c.id).where(jobs.c.app_id == app_id).limit(1)).scalar() is not None


def delete_app(connection: Connection, app_id: int) -> None:
    connection.execute(delete(apps).where(apps.c.id == app_id))
