"""SQL of the log as people ask for it; the feed is in store/feed.py."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, select

from balsam_exec.model.events import Kind
from balsam_exec.model.queries import Query
from balsam_exec.server.store import filters
from balsam_exec.server.store.schema import events, job_tags
from balsam_exec.server.store.types import dicts

_FIELDS: dict[str, ColumnElement[Any]] = {
    **{column.name: column for column in events.c},
    "job_id": events.c.subject_id,
}
_COLUMNS = [column for column in events.c if column.name != "owner_id"]


def listing(connection: Connection, owner_id: int, query: Query) -> list[dict[str, Any]]:
    lookups = filters.given(query)
    tags = filters.tag_pairs(lookups.pop("tags", ()))
    where = [events.c.owner_id == owner_id, *filters.conditions(lookups, _FIELDS)]
    if tags or "job_id" in lookups or "job_id__ne" in lookups:
        where.append(events.c.kind == Kind.JOB.value)
    for key, value in tags:
        tagged = select(job_tags.c.job_id).where(
            job_tags.c.owner_id == owner_id, job_tags.c.key == key, job_tags.c.value == value
        )
        where.append(events.c.subject_id.in_(tagged))
    statement = filters.paged(select(*_COLUMNS).where(*where), query, _FIELDS, events.c.id)
    return dicts(connection.execute(statement))
