"""SQL of batch jobs."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from balsam_exec.model.queries import Query
from balsam_exec.model.states import BATCH_JOB_ENDED
from balsam_exec.server.store import filters
from balsam_exec.server.store.schema import batch_jobs
from balsam_exec.server.store.types import AnyRow

_FIELDS = {column.name: column for column in batch_jobs.c}


def insert_batch_job(connection: Connection, values: dict[str, Any]) -> AnyRow:
    return connection.execute(insert(batch_jobs).values(values).returning(*batch_jobs.c)).one()


def batch_job(connection: Connection, owner_id: int, batch_job_id: int, *, lock: bool = False) -> AnyRow | None:
    query = select(batch_jobs).where(batch_jobs.c.id == batch_job_id, batch_jobs.c.owner_id == owner_id)
    return connection.execute(query.with_for_update() if lock else query).one_or_none()


def listing(connection: Connection, owner_id: int, query: Query) -> list[AnyRow]:
    statement = select(batch_jobs).where(batch_jobs.c.owner_id == owner_id)
    statement = statement.where(*filters.conditions(filters.given(query), _FIELDS))
    return list(connection.execute(filters.paged(statement, query, _FIELDS, batch_jobs.c.id)))


def living(connection: Connection, site_id: int, queue: str) -> int:
    """How many batch jobs of a queue have not ended."""
    where = (batch_jobs.c.site_id == site_id, batch_jobs.c.queue == queue)
    statement = select(func.count()).where(*where, batch_jobs.c.state.not_in(sorted(BATCH_JOB_ENDED)))
    return int(connection.execute(statement).scalar_one())


def update_batch_job(connection: Connection, batch_job_id: int, values: dict[str, Any]) -> AnyRow:
    statement = update(batch_jobs).where(batch_jobs.c.id == batch_job_id).values(values).returning(*batch_jobs.c)
    return connection.execute(statement).one()


def delete_batch_job(connection: Connection, batch_job_id: int) -> None:
    connection.execute(delete(batch_jobs).where(batch_jobs.c.id == batch_job_id))
