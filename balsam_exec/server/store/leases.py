"""SQL of sessions and leases."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, delete, func, insert, literal_column, select, text, update

from balsam_exec.model.base import MAX_BULK
from balsam_exec.model.queries import Query
from balsam_exec.model.sessions import AcquireRequest, SessionSpec
from balsam_exec.server.store import filters
from balsam_exec.server.store.dialect import any_of
from balsam_exec.server.store.jobs import without_default_outputs
from balsam_exec.server.store.prepared import Prepared
from balsam_exec.server.store.schema import (
    RUNNABLE_UNLEASED,
    SEVERAL_NODES,
    TAKES_LONG,
    TO_KILL,
    apps,
    job_payloads,
    job_tags,
    jobs,
    sessions,
)
from balsam_exec.server.store.types import AnyRow, IdList, micros

_IDS = bindparam("ids", type_=IdList())
_LIMIT = 2**31 - 1  # what a launcher says it has room for may be any number; a column holds no more

_TOUCH = Prepared(
    update(sessions)
    .where(
        sessions.c.id == bindparam("session"),
        sessions.c.owner_id == bindparam("owner"),
        sessions.c.expires > bindparam("now"),
    )
    .values(expires=bindparam("now") + sessions.c.ttl)
    .returning(*(sessions.c[name] for name in ("id", "site_id", "batch_job_id", "ttl", "expires", "acquire_key")))
)
_ACQUIRED = select(sessions.c.acquired_ids).where(sessions.c.id == bindparam("session"))
_HELD = select(jobs.c.id).where(jobs.c.session_id == bindparam("session")).order_by(jobs.c.id)
_REMEMBER = Prepared(
    update(sessions)
    .where(sessions.c.id == bindparam("session"))
    .values(acquire_key=bindparam("key"), acquired_ids=bindparam("ids"))
)
_LEASE = Prepared(
    update(jobs)
    .where(any_of(jobs.c.id, _IDS))
    .values(session_id=bindparam("session"), epoch=jobs.c.epoch + 1, num_runs=jobs.c.num_runs + 1)
)
_RUNNABLE = (
    select(jobs.c.id, jobs.c.num_nodes, jobs.c.node_packing_count)
    .where(
        text(RUNNABLE_UNLEASED),
        jobs.c.site_id == bindparam("site"),
        jobs.c.ranks_per_node * jobs.c.gpus_per_rank <= bindparam("gpus"),
        jobs.c.wall_time_min <= bindparam("minutes"),
    )
    .limit(bindparam("limit"))
    .with_for_update(skip_locked=True)
)
_SERIAL = (jobs.c.num_nodes == 1, jobs.c.ranks_per_node == 1)
#: What is free is less than a node that is empty.
_NARROW = (
    jobs.c.node_packing_count >= bindparam("packing"),
    jobs.c.ranks_per_node * ((jobs.c.threads_per_rank + jobs.c.threads_per_core - 1) // jobs.c.threads_per_core)
    <= bindparam("cores"),
)
#: What is taken in which order; each has its index.
_SMALL_FIRST = (jobs.c.num_nodes, jobs.c.priority, jobs.c.id)
_FITS = jobs.c.num_nodes <= bindparam("nodes")
_NODES = jobs.c.num_nodes + literal_column("0")  # SQLite is to look for no index of it
_ORDERS: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    "small_first": ((_FITS,), _SMALL_FIRST),
    "long_large_first": (
        (_FITS, text(TAKES_LONG), jobs.c.priority >= -bindparam("minutes", type_=jobs.c.priority.type)),
        (jobs.c.priority, jobs.c.num_nodes.desc(), jobs.c.id),
    ),
    "of_unknown_length": ((_FITS, jobs.c.wall_time_min == 0), _SMALL_FIRST),
    "oldest_first": (
        (
            text(SEVERAL_NODES),
            jobs.c.kill_requested.is_(False),
            _NODES.between(bindparam("least_nodes"), bindparam("nodes")),
        ),
        (jobs.c.id,),
    ),
}
_WAITED = jobs.c.last_update <= bindparam("free_since", type_=jobs.c.last_update.type)
_SIZES = select(job_payloads.c.job_id, func.length(job_payloads.c.arguments)).where(
    any_of(job_payloads.c.job_id, _IDS), job_payloads.c.arguments.is_not(None)
)
_WITH_PAYLOAD = Prepared(
    select(
        *(jobs.c[name] for name in ("id", "epoch", "app_id", "state", "num_nodes", "ranks_per_node")),
        *(jobs.c[name] for name in ("threads_per_rank", "threads_per_core", "gpus_per_rank")),
        *(jobs.c[name] for name in ("node_packing_count", "wall_time_min")),
        *(job_payloads.c[name] for name in ("workdir", "tags", "data", "parameters", "launch_params", "arguments")),
        *(job_payloads.c[name] for name in ("stdout", "stderr")),
        apps.c.digest.label("app_digest"),
    )
    .join(job_payloads, job_payloads.c.job_id == jobs.c.id)
    .join(apps, apps.c.id == jobs.c.app_id)
    .where(any_of(jobs.c.id, _IDS), jobs.c.session_id == bindparam("session"))
)
_TO_KILL = Prepared(
    select(jobs.c.id, jobs.c.epoch)
    .where(text(TO_KILL), jobs.c.session_id == bindparam("session"))
    .order_by(jobs.c.id)
    .limit(MAX_BULK)
)


def touch(connection: Connection, owner_id: int, session_id: int, now: int) -> AnyRow | None:
    """Extend a living session, and lock it until the transaction ends; None where it is gone or has expired."""
    return _TOUCH.one_or_none(connection, {"session": session_id, "owner": owner_id, "now": now})


class Bounds(NamedTuple):
    """What limits an acquire besides its request: the time, and the bytes of arguments in all and in one job."""

    now: int
    budget: int
    largest: int


def runnable(connection: Connection, site_id: int, request: AcquireRequest, now: int) -> list[AnyRow]:
    """The jobs that fit the request, each by itself, most urgent first."""
    minutes, cores = request.max_wall_time_min, request.max_cores_per_node
    parameters = {
        "site": site_id,
        "nodes": min(request.max_nodes, _LIMIT),
        "gpus": request.max_gpus_per_node * (1 + 1e-9),  # 25 times 7/25 is a little more than 7
        "minutes": _LIMIT if minutes is None else min(minutes, _LIMIT),
        "packing": request.min_packing_count,
        "cores": _LIMIT if cores is None else min(cores, _LIMIT),
        "least_nodes": min(request.min_nodes, _LIMIT),
        "free_since": now - round(request.min_wait_sec * 1_000_000),
    }
    orders: list[str] = ["oldest_first"] if request.min_nodes > 1 else [request.sort_by]
    if orders == ["long_large_first"]:
        orders.append("of_unknown_length")
    found: list[AnyRow] = []
    for order in orders:
        if (left := request.max_jobs - len(found)) > 0:
            found += _runnable(_Shape.of(order, request)).rows(connection, {**parameters, "limit": left})
    return found


class _Shape(NamedTuple):
    """What of a request decides how the query reads."""

    order: str
    serial: bool
    narrow: bool
    waited: bool
    tags: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, order: str, request: AcquireRequest) -> _Shape:
        narrow = request.max_cores_per_node is not None or request.min_packing_count > 1
        return cls(order, request.serial_only, narrow, request.min_wait_sec > 0, tuple(request.filter_tags.items()))


@lru_cache(maxsize=256)  # a launcher asks the same again and again
def _runnable(shape: _Shape) -> Prepared:
    some, order = _ORDERS[shape.order]
    query = _RUNNABLE.where(*some).order_by(*order)
    for wanted, conditions in ((shape.serial, _SERIAL), (shape.narrow, _NARROW), (shape.waited, (_WAITED,))):
        query = query.where(*conditions) if wanted else query
    for key, value in shape.tags:
        has_tag = select(job_tags.c.job_id).where(
            job_tags.c.job_id == jobs.c.id,
            job_tags.c.owner_id == jobs.c.owner_id,
            job_tags.c.key == key,
            job_tags.c.value == value,
        )
        query = query.where(has_tag.exists())
    return Prepared(query)


def lease(
    connection: Connection, site_id: int, session_id: int, request: AcquireRequest, bounds: Bounds
) -> tuple[list[int], bool]:
    """Lease the most urgent jobs that fit, together too.

    Returns their ids, and whether there are no more.
    """
    found = runnable(connection, site_id, request, bounds.now)
    if not found:
        return [], True
    ids = [row.id for row in _side_by_side(found, request.max_aggregate_nodes)]
    if len(ids) * bounds.largest > bounds.budget:
        ids = _within(bounds.budget, ids, dict(connection.execute(_SIZES, {"ids": ids}).all()))
    _LEASE.run(connection, {"ids": ids, "session": session_id})
    return ids, len(found) < request.max_jobs and len(ids) == len(found)


def _side_by_side(found: Sequence[AnyRow], nodes: float | None) -> Sequence[AnyRow]:
    """The first of these jobs, at least one, that have room on so many nodes."""
    if nodes is None:
        return found
    left = nodes * (1 + 1e-9)  # 49 times 1/49 is a little more than 1
    for count, row in enumerate(found):
        left -= row.num_nodes / row.node_packing_count
        if left < 0 and count:
            return found[:count]
    return found


def _within(budget: int, ids: Sequence[int], sizes: dict[int, int]) -> list[int]:
    """The first of the ids, at least one, up to the budget."""
    taken: list[int] = []
    for job_id in ids:
        budget -= sizes.get(job_id, 0)
        if budget < 0 and taken:
            break
        taken.append(job_id)
    return taken


def leased(connection: Connection, session_id: int, ids: Sequence[int]) -> list[dict[str, Any]]:
    """All that is needed to run those of the jobs that the session holds, in that order."""
    found = _WITH_PAYLOAD.dicts(connection, {"ids": ids, "session": session_id})
    without_default_outputs(found)
    by_id = {job["id"]: job for job in found}
    return [by_id[job_id] for job_id in ids if job_id in by_id]


def to_kill(connection: Connection, session_id: int) -> dict[int, int]:
    """Of the jobs that the session holds those it is to kill, and their epochs; a bulk at most."""
    return dict(_TO_KILL.rows(connection, {"session": session_id}))


def remember(connection: Connection, session_id: int, key: str, ids: list[int] | None) -> None:
    """The last acquire of the session, for when it is repeated; without ids it is whatever the session holds then."""
    _REMEMBER.run(connection, {"session": session_id, "key": key, "ids": ids})


def acquired(connection: Connection, session_id: int) -> list[int]:
    """What the last acquire gave."""
    ids: list[int] = connection.execute(_ACQUIRED, {"session": session_id}).scalar_one()
    return ids or list(connection.execute(_HELD, {"session": session_id}).scalars())


def insert_session(connection: Connection, owner_id: int, spec: SessionSpec, now: int) -> AnyRow:
    ttl = round(spec.ttl_sec * 1_000_000)
    values = {
        "owner_id": owner_id,
        "site_id": spec.site_id,
        "batch_job_id": spec.batch_job_id,
        "ttl": ttl,
        "expires": now + ttl,
        "room": spec.room.model_dump() if spec.room else None,
    }
    return connection.execute(insert(sessions).values(values).returning(*sessions.c)).one()


def lock_session(connection: Connection, session_id: int) -> AnyRow | None:
    query = select(sessions).where(sessions.c.id == session_id).with_for_update()
    return connection.execute(query).one_or_none()


def delete_session(connection: Connection, session_id: int) -> None:
    connection.execute(delete(sessions).where(sessions.c.id == session_id))


def expired(connection: Connection, now: int) -> list[int]:
    query = select(sessions.c.id).where(sessions.c.expires <= now).order_by(sessions.c.expires).limit(100)
    return list(connection.execute(query).scalars())


def next_expiry(connection: Connection) -> int | None:
    """When the next session expires, in microseconds since 1970."""
    query = select(func.min(sessions.c.expires))
    found = connection.execute(query).scalar()
    return None if found is None else micros(found)


def of_batch_job(connection: Connection, batch_job_id: int) -> list[int]:
    query = select(sessions.c.id).where(sessions.c.batch_job_id == batch_job_id).order_by(sessions.c.id)
    return list(connection.execute(query).scalars())


def listing(connection: Connection, owner_id: int, query: Query) -> list[AnyRow]:
    fields = {column.name: column for column in sessions.c}
    statement = select(sessions).where(sessions.c.owner_id == owner_id)
    statement = statement.where(*filters.conditions(filters.given(query), fields))
    return list(connection.execute(filters.paged(statement, query, fields, sessions.c.id)))
