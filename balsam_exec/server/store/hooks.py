"""SQL of the jobs that wait for their site."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, select, union_all

from balsam_exec.model.hooks import AT_SITE
from balsam_exec.model.states import JobState, Step
from balsam_exec.server.store.dialect import any_of
from balsam_exec.server.store.schema import apps, job_edges, job_payloads, jobs
from balsam_exec.server.store.types import AnyRow, IdList, dicts

_VISIT = (jobs.c.id, jobs.c.epoch, jobs.c.state)


def _waiting_in(state: JobState) -> Any:
    """The first that rest in a state, by the index (owner, state, id)."""
    of_the_site = (jobs.c.owner_id == bindparam("owner"), jobs.c.site_id == bindparam("site"))
    found = select(*_VISIT).where(*of_the_site, jobs.c.state == state.value)
    if state is JobState.READY:  # what waits for transfers only is none of the agent's hooks
        found = found.where(jobs.c.steps.op("&")(Step.INPUT_FILES.value) != 0)
    return select(found.order_by(jobs.c.id).limit(bindparam("limit")).subquery())


_WAITING = union_all(*map(_waiting_in, sorted(AT_SITE)))
_STANDING = select(*_VISIT).where(
    any_of(jobs.c.id, bindparam("ids", type_=IdList())), jobs.c.owner_id == bindparam("owner")
)
_TERMS = (
    select(jobs.c.id, jobs.c.epoch, apps.c.digest.label("app_digest"))
    .join(apps, apps.c.id == jobs.c.app_id)
    .where(any_of(jobs.c.id, bindparam("ids", type_=IdList())))
)
_DIGESTS = select(apps.c.id, apps.c.digest).where(
    any_of(apps.c.id, bindparam("ids", type_=IdList())), apps.c.owner_id == bindparam("owner")
)
_PARENTS = (
    select(job_edges.c.child_id, jobs.c.id, jobs.c.site_id, job_payloads.c.workdir)
    .join(jobs, jobs.c.id == job_edges.c.parent_id)
    .join(job_payloads, job_payloads.c.job_id == jobs.c.id)
    .where(any_of(job_edges.c.child_id, bindparam("ids", type_=IdList())))
    .order_by(job_edges.c.child_id, jobs.c.id)
)


def waiting(connection: Connection, owner_id: int, site_id: int, limit: int) -> list[AnyRow]:
    """(id, epoch, state) of jobs that rest where the site has to act, the oldest `limit` of each state."""
    return list(connection.execute(_WAITING, {"owner": owner_id, "site": site_id, "limit": limit}))


def standing(connection: Connection, owner_id: int, ids: Iterable[int]) -> list[AnyRow]:
    """(id, epoch, state) of those of the jobs that exist and are the owner's."""
    return list(connection.execute(_STANDING, {"ids": list(ids), "owner": owner_id}))


def terms(connection: Connection, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
    """By job: its epoch and the digest of its app."""
    return {row.pop("id"): row for row in dicts(connection.execute(_TERMS, {"ids": ids}))}


def digests(connection: Connection, owner_id: int, app_ids: Iterable[int]) -> dict[int, str]:
    """Of those of the apps that exist and are the owner's."""
    return dict(connection.execute(_DIGESTS, {"ids": list(app_ids), "owner": owner_id}).all())


def parents(connection: Connection, ids: Sequence[int]) -> dict[int, list[dict[str, Any]]]:
    """By job: its parents, each with its site and workdir."""
    found: dict[int, list[dict[str, Any]]] = {}
    for row in dicts(connection.execute(_PARENTS, {"ids": ids})) if ids else ():
        found.setdefault(row.pop("child_id"), []).append(row)
    return found
