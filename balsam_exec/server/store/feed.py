"""SQL of the change feed and of results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, and_, bindparam, func, literal, or_, select

from balsam_exec.model.events import Kind
from balsam_exec.model.queries import FeedQuery
from balsam_exec.model.states import TERMINAL
from balsam_exec.server.store.dialect import any_of
from balsam_exec.server.store.filters import tag_pairs
from balsam_exec.server.store.prepared import Prepared
from balsam_exec.server.store.schema import events, job_results, job_tags, jobs
from balsam_exec.server.store.types import IdList

_HEAD = Prepared(select(func.max(events.c.id).label("id")).where(events.c.owner_id == bindparam("owner")))
_ENDED = [state.value for state in sorted(TERMINAL)]
_COLUMNS = [column for column in events.c if column.name != "owner_id"]
_SIZE = (
    func.coalesce(func.length(job_results.c.value), 0) + func.coalesce(func.length(job_results.c.exception), 0)
).label("size")
_AFTER = (
    select(*_COLUMNS)
    .where(
        events.c.owner_id == bindparam("owner"),
        events.c.id > bindparam("after"),
        events.c.id <= bindparam("head"),
    )
    .order_by(events.c.id)
    .limit(bindparam("limit"))
)
_RESULTS = Prepared(select(job_results).where(any_of(job_results.c.job_id, bindparam("ids", type_=IdList()))))
_SIZES = select(job_results.c.job_id, _SIZE).where(any_of(job_results.c.job_id, bindparam("ids", type_=IdList())))
_ENDED_JOBS = select(jobs.c.id, jobs.c.state, jobs.c.return_code).where(
    any_of(jobs.c.id, bindparam("ids", type_=IdList())),
    jobs.c.owner_id == bindparam("owner"),
    jobs.c.state.in_(_ENDED),
)


def head(connection: Connection, owner_id: int) -> int:
    """The id of the owner's last event: the present end of the feed."""
    return _HEAD.rows(connection, {"owner": owner_id})[0].id or 0


def after(connection: Connection, owner_id: int, cursor: int, head: int, query: FeedQuery) -> list[dict[str, Any]]:
    """The first events the query asks for among those after the cursor, up to the head."""
    statement = _after(
        tuple(kind.value for kind in query.kind),
        tuple(query.to_state),
        bool(query.site_id),
        bool(query.subject_id),
        tuple(tag_pairs(query.tags)),
    )
    parameters: dict[str, Any] = {"owner": owner_id, "after": cursor, "head": head, "limit": query.limit}
    if query.site_id:
        parameters["sites"] = query.site_id
    if query.subject_id:
        parameters["subjects"] = query.subject_id
    return statement.dicts(connection, parameters)


@lru_cache(maxsize=256)  # who follows the feed asks the same again and again
def _after(
    kinds: tuple[str, ...], to_states: tuple[str, ...], sites: bool, subjects: bool, tags: tuple[tuple[str, str], ...]
) -> Prepared:
    statement = _AFTER
    if kinds:
        statement = statement.where(events.c.kind.in_([literal(kind) for kind in kinds]))
    if to_states:
        statement = statement.where(events.c.to_state.in_([literal(state) for state in to_states]))
    if sites:
        statement = statement.where(any_of(events.c.site_id, bindparam("sites", type_=IdList())))
    if subjects:
        statement = statement.where(any_of(events.c.subject_id, bindparam("subjects", type_=IdList())))
    for key, value in tags:
        has_tag = select(job_tags.c.job_id).where(
            and_(job_tags.c.owner_id == events.c.owner_id, job_tags.c.job_id == events.c.subject_id),
            and_(job_tags.c.key == key, job_tags.c.value == value),
        )
        statement = statement.where(or_(events.c.kind != Kind.JOB.value, has_tag.exists()))
    return Prepared(statement)


def result_sizes(connection: Connection, ids: Iterable[int]) -> dict[int, int]:
    """Bytes of the values and exceptions of those of the jobs that have a result."""
    return dict(connection.execute(_SIZES, {"ids": sorted(ids)}).all())


def results(connection: Connection, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
    return {row.pop("job_id"): row for row in _RESULTS.dicts(connection, {"ids": ids})}


def ended(connection: Connection, owner_id: int, ids: Sequence[int]) -> dict[int, tuple[str, int | None]]:
    """(state, return code) of those of the jobs that are the owner's and have ended."""
    rows = connection.execute(_ENDED_JOBS, {"ids": ids, "owner": owner_id})
    return {row.id: (row.state, row.return_code) for row in rows}
