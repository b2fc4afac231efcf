"""SQL that shows jobs: pages, counts, one job with all of its fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, FromClause, Select, bindparam, func, select

from balsam_exec.model.queries import Query
from balsam_exec.model.states import TERMINAL
from balsam_exec.server.store import filters
from balsam_exec.server.store.dialect import any_of
from balsam_exec.server.store.jobs import STATE_COLUMNS, without_default_outputs
from balsam_exec.server.store.schema import apps, job_counts, job_edges, job_payloads, job_tags, jobs
from balsam_exec.server.store.types import IdList, dicts

_JOB_FIELDS = (
    *("id", "app_id", "site_id", "state", "batch_job_id", "return_code", "created", "last_update"),
    *("num_nodes", "ranks_per_node", "threads_per_rank", "threads_per_core", "gpus_per_rank"),
    *("node_packing_count", "wall_time_min", "on_parent_failure", "num_runs", "root_cause"),
)
_PAYLOAD_FIELDS = (
    "workdir",
    "tags",
    "data",
    "parameters",
    "launch_params",
    "transfers",
    "stdout",
    "stderr",
    "input_files",
)
#: All of a JobRecord but its arguments, which may be large: only their size.
_RECORD = [
    *(jobs.c[name] for name in _JOB_FIELDS),
    *(job_payloads.c[name] for name in _PAYLOAD_FIELDS),
    func.coalesce(func.length(job_payloads.c.arguments), 0).label("size"),
]
_FIELDS: dict[str, ColumnElement[Any]] = {
    **{name: jobs.c[name] for name in _JOB_FIELDS},
    "workdir": job_payloads.c.workdir,
    "app_name": apps.c.name,
}
_ARGUMENTS = select(job_payloads.c.job_id, job_payloads.c.arguments).where(
    any_of(job_payloads.c.job_id, bindparam("ids", type_=IdList()))
)
#: What is asked for by its relatives is at the other end of the edge.
_EDGE_ENDS = {"parent_id": "child_id", "child_id": "parent_id"}
_PARENTS = (
    select(job_edges.c.child_id, job_edges.c.parent_id)
    .where(any_of(job_edges.c.child_id, bindparam("ids", type_=IdList())))
    .order_by(job_edges.c.child_id, job_edges.c.parent_id)
)


def _selection(
    owner_id: int, query: Query, columns: Sequence[ColumnElement[Any]], *, payload: bool = False
) -> tuple[Select[Any], ColumnElement[int]]:
    """`columns` of the jobs that match, without order, and the column to take their ids from.

    A tag leads: its index has the jobs of one tag in the order of their ids, so a page costs a page.
    """
    lookups = filters.given(query)
    tags = filters.tag_pairs(lookups.pop("tags", ()))
    relatives = {name: lookups.pop(name) for name in list(lookups) if name.partition("__")[0] in _EDGE_ENDS}
    source: FromClause = jobs
    key: ColumnElement[int] = jobs.c.id
    where: list[ColumnElement[bool]] = [jobs.c.owner_id == owner_id]
    if tags:
        leading = job_tags.alias("leading")
        source = leading.join(jobs, jobs.c.id == leading.c.job_id)
        key = leading.c.job_id
        where += [leading.c.owner_id == owner_id, leading.c.key == tags[0][0], leading.c.value == tags[0][1]]
        where += [_has_tag(owner_id, *pair) for pair in tags[1:]]
    if payload or any(name.startswith("workdir") for name in lookups):
        source = source.join(job_payloads, job_payloads.c.job_id == jobs.c.id)
    if any(name.startswith("app_name") for name in lookups):
        source = source.join(apps, apps.c.id == jobs.c.app_id)
    for name, ids in relatives.items():
        related = _related(name.partition("__")[0], ids)
        where.append(~related if name.endswith("__ne") else related)
    return select(*columns).select_from(source).where(*where, *filters.conditions(lookups, _FIELDS)), key


def _has_tag(owner_id: int, key: str, value: str) -> ColumnElement[bool]:
    tag = job_tags.alias()
    where = (tag.c.owner_id == owner_id, tag.c.key == key, tag.c.value == value, tag.c.job_id == jobs.c.id)
    return select(tag.c.job_id).where(*where).exists()


def _related(end: str, ids: list[int]) -> ColumnElement[bool]:
    """Jobs with one of these at that end of an edge: with `parent_id` the children of these, with `child_id` the
    parents."""
    return jobs.c.id.in_(select(job_edges.c[_EDGE_ENDS[end]]).where(job_edges.c[end].in_(ids)))


def page_query(owner_id: int, query: Query) -> Select[Any]:
    statement, key = _selection(owner_id, query, _RECORD, payload=True)
    return filters.paged(statement, query, _FIELDS, key)


def job_page(connection: Connection, owner_id: int, query: Query) -> list[dict[str, Any]]:
    """The rows of a page of JobRecords, and one more where there are more; `add_arguments` completes them."""
    return _records(connection, page_query(owner_id, query))


def add_arguments(connection: Connection, records: Sequence[dict[str, Any]]) -> None:
    """Complete JobRecords: their arguments instead of the size of these."""
    large = [record["id"] for record in records if record.pop("size")]
    found = dict(connection.execute(_ARGUMENTS, {"ids": large}).all()) if large else {}
    for record in records:
        record["arguments"] = found.get(record["id"])


def job(connection: Connection, owner_id: int, job_id: int) -> dict[str, Any] | None:
    statement = select(*_RECORD).join(job_payloads, job_payloads.c.job_id == jobs.c.id)
    statement = statement.where(jobs.c.id == job_id, jobs.c.owner_id == owner_id)
    records = _records(connection, statement)
    add_arguments(connection, records)
    return next(iter(records), None)


def _records(connection: Connection, statement: Select[Any]) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = [{**row, "parent_ids": []} for row in dicts(connection.execute(statement))]
    without_default_outputs(records)
    by_id = {record["id"]: record for record in records}
    if by_id:
        for child_id, parent_id in connection.execute(_PARENTS, {"ids": list(by_id)}):
            by_id[child_id]["parent_ids"].append(parent_id)
    return records


def matching(owner_id: int, query: Query) -> Select[Any]:
    """The query for the JobRows of all jobs that match, whatever page is asked for."""
    return _selection(owner_id, query, STATE_COLUMNS)[0].order_by(jobs.c.id)


def living(owner_id: int, query: Query) -> Select[Any]:
    """The same for those that have not ended."""
    return matching(owner_id, query).where(jobs.c.state.not_in(sorted(TERMINAL)))


def count(connection: Connection, owner_id: int, query: Query) -> int:
    statement, _ = _selection(owner_id, query, [func.count()])
    return int(connection.execute(statement).scalar_one())


def state_counts(connection: Connection, owner_id: int, query: Query) -> dict[str, int]:
    """How many of the jobs that match are in each state."""
    statement, _ = _selection(owner_id, query, [jobs.c.state, func.count()])
    return dict(connection.execute(statement.group_by(jobs.c.state)).all())


def counted_states(connection: Connection, owner_id: int, site_ids: Sequence[int]) -> dict[str, int]:
    """The same from the counters, for all jobs of the sites or, without any, of the owner."""
    statement = select(job_counts.c.state, func.sum(job_counts.c.count)).where(job_counts.c.owner_id == owner_id)
    if site_ids:
        statement = statement.where(job_counts.c.site_id.in_(site_ids))
    rows = connection.execute(statement.group_by(job_counts.c.state))
    return {state: int(number) for state, number in rows if number}
