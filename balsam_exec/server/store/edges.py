"""SQL of dependencies: who waits for whom, what a job counts of its parents, whose fault a failure is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import Connection, bindparam, case, delete, func, or_, select, update

from balsam_exec.model.states import FAILURES, JobState, OnParentFailure
from balsam_exec.server.store import dialect
from balsam_exec.server.store.dialect import any_of
from balsam_exec.server.store.jobs import STATE_COLUMNS, JobRow
from balsam_exec.server.store.prepared import Prepared
from balsam_exec.server.store.schema import job_edges, job_payloads, job_results, jobs
from balsam_exec.server.store.types import IdList

#: Characters of an error, at its start and at its end, that may say what it is.
_EXCERPT = 400

_IDS = bindparam("ids", type_=IdList())
_PARENT, _CHILD = job_edges.c.parent_id, job_edges.c.child_id
_EDGE = select(_PARENT, _CHILD)
_CHILDREN = Prepared(_EDGE.where(any_of(_PARENT, _IDS)))
_LOCK = select(*STATE_COLUMNS).where(any_of(jobs.c.id, _IDS)).order_by(jobs.c.id).with_for_update()

#: What follows its parents: it fails with one of them, or has.
_FOLLOWS = or_(
    (jobs.c.state == JobState.AWAITING_PARENTS.value) & (jobs.c.on_parent_failure == OnParentFailure.FAIL.value),
    jobs.c.root_cause.is_not(None),
)
_FOLLOWER = select(_CHILD).join(jobs, jobs.c.id == _CHILD).where(_FOLLOWS)
_down = _FOLLOWER.where(any_of(_PARENT, _IDS)).cte("down", recursive=True)
_down = _down.union(_FOLLOWER.where(_down.c.child_id == _PARENT))
_FOLLOWERS = select(_down.c.child_id)
_below = _EDGE.where(any_of(_PARENT, _IDS)).cte("below", recursive=True)
_below = _below.union(_EDGE.where(_below.c.child_id == _PARENT))
_BELOW = select(_below.c.parent_id, _below.c.child_id)

_COUNT = (
    update(jobs)
    .where(any_of(jobs.c.id, _IDS))
    .values(
        pending_parents=jobs.c.pending_parents + bindparam("pending"),
        failed_parents=jobs.c.failed_parents + bindparam("failed"),
    )
)
_FAILED_PARENTS = (
    select(_CHILD, func.min(_PARENT))
    .join(jobs, jobs.c.id == _PARENT)
    .where(
        any_of(_CHILD, _IDS),
        jobs.c.state.in_(sorted(FAILURES)),
        ~any_of(_PARENT, bindparam("but", type_=IdList())),
    )
    .group_by(_CHILD)
)
_root = jobs.alias("root")
_error = job_results.c.error
_tail = func.length(_error) - _EXCERPT + 1
_CAUSES = (
    select(
        *(jobs.c.id, func.coalesce(jobs.c.root_cause, jobs.c.id), func.coalesce(_root.c.state, "deleted")),
        *(func.substr(_error, 1, _EXCERPT), func.substr(_error, case((_tail > 1, _tail), else_=1))),
        _root.c.return_code,
    )
    .outerjoin(_root, _root.c.id == func.coalesce(jobs.c.root_cause, jobs.c.id))
    .outerjoin(job_results, job_results.c.job_id == _root.c.id)
    .where(any_of(jobs.c.id, _IDS))
)
_CUT = delete(job_edges).where(any_of(_CHILD, _IDS))
_WITH_INPUT = select(job_payloads.c.job_id).where(
    any_of(job_payloads.c.job_id, _IDS), job_payloads.c.input_files.is_not(None)
)
_WITH_PARENTS = select(_CHILD).distinct().where(any_of(_CHILD, _IDS))


class Failure(NamedTuple):
    """A job without success, or what it failed of: the job that failed first of all."""

    root_id: int
    state: str
    error_start: str | None
    error_end: str | None
    return_code: int | None


def children(connection: Connection, parent_ids: Iterable[int]) -> list[tuple[int, int]]:
    """(parent, child), of all children of these. They stay as long as the parents are locked."""
    return [tuple(row) for row in _CHILDREN.rows(connection, {"ids": sorted(parent_ids)})]


def parents(connection: Connection, child_ids: Iterable[int]) -> list[tuple[int, int]]:
    """(parent, child), of all parents of these."""
    rows = connection.execute(_EDGE.where(any_of(_CHILD, _IDS)), {"ids": sorted(child_ids)})
    return [(parent, child) for parent, child in rows]


def below(connection: Connection, ids: Iterable[int]) -> list[tuple[int, int]]:
    """(parent, child), of these jobs and all that are below them."""
    return [(parent, child) for parent, child in connection.execute(_BELOW, {"ids": sorted(ids)})]


def followers(connection: Connection, ids: Iterable[int]) -> set[int]:
    """The jobs below these that may come to fail, or to wait again, with them; a good guess until they are locked."""
    return set(connection.execute(_FOLLOWERS, {"ids": sorted(ids)}).scalars())


def lock(connection: Connection, ids: Iterable[int]) -> list[JobRow]:
    """Those of the jobs that exist, whoever's they are, locked until the transaction ends."""
    return [JobRow.of(row) for row in connection.execute(_LOCK, {"ids": sorted(ids)})]


def count(connection: Connection, changes: Mapping[int, tuple[int, int]]) -> None:
    """By job: how many more of its parents are unfinished, and how many more have failed."""
    groups: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for job_id, change in changes.items():
        if change != (0, 0):
            groups[change].append(job_id)
    for (pending, failed), ids in groups.items():
        connection.execute(_COUNT, {"ids": ids, "pending": pending, "failed": failed})


def failed_parents(connection: Connection, child_ids: Iterable[int], but: Collection[int]) -> dict[int, int]:
    """For each of the children one of its parents that has failed, and is none of `but`."""
    rows = connection.execute(_FAILED_PARENTS, {"ids": sorted(child_ids), "but": list(but)})
    return dict(rows.all())


def failures(connection: Connection, ids: Iterable[int]) -> dict[int, Failure]:
    """What these jobs, which have failed, failed of."""
    return {row[0]: Failure(*row[1:]) for row in connection.execute(_CAUSES, {"ids": sorted(ids)})}


def replace(connection: Connection, child_ids: Sequence[int], parent_ids: Sequence[int]) -> None:
    """Give each of the children these parents and no other."""
    connection.execute(_CUT, {"ids": child_ids})
    rows = [(parent, child) for parent in parent_ids for child in child_ids]
    dialect.bulk_insert(connection, job_edges, ("parent_id", "child_id"), rows)


def with_input(connection: Connection, ids: Sequence[int]) -> set[int]:
    """Those of the jobs that have both parents and patterns of files to take from them."""
    asking = set(connection.execute(_WITH_INPUT, {"ids": ids}).scalars())
    return asking & set(connection.execute(_WITH_PARENTS, {"ids": ids}).scalars())
