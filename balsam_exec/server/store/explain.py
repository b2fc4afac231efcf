"""SQL that gathers what may keep a job from running; each function is one statement."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, case, func, select, text, union_all

from balsam_exec.model.events import Kind
from balsam_exec.model.states import BATCH_JOB_ENDED, JobState
from balsam_exec.model.transfers import TransferState
from balsam_exec.server.store.schema import (
    RUNNABLE_UNLEASED,
    apps,
    batch_jobs,
    events,
    job_counts,
    job_edges,
    job_payloads,
    jobs,
    sessions,
    sites,
    transfers,
)
from balsam_exec.server.store.types import AnyRow

_FAILED = (JobState.FAILED.value, JobState.USER_KILLED.value)


def job(connection: Connection, owner_id: int, job_id: int) -> AnyRow | None:
    """The job with its app, its site and the session that holds it."""
    query = (
        select(
            *(column for column in jobs.c if column.name not in ("owner_id", "epoch", "tag_marks")),
            job_payloads.c.tags,
            apps.c.name.label("app_name"),
            sites.c.name.label("site_name"),
            sites.c.last_refresh,
            sessions.c.ttl,
            sessions.c.expires,
            sessions.c.batch_job_id.label("session_batch_job_id"),
        )
        .join(job_payloads, job_payloads.c.job_id == jobs.c.id)
        .join(apps, apps.c.id == jobs.c.app_id)
        .join(sites, sites.c.id == jobs.c.site_id)
        .outerjoin(sessions, sessions.c.id == jobs.c.session_id)
        .where(jobs.c.id == job_id, jobs.c.owner_id == owner_id)
    )
    return connection.execute(query).one_or_none()


def parent_counts(connection: Connection, job_id: int) -> dict[str, int]:
    """How many of its parents are in each state."""
    query = (
        select(jobs.c.state, func.count())
        .join(job_edges, job_edges.c.parent_id == jobs.c.id)
        .where(job_edges.c.child_id == job_id)
        .group_by(jobs.c.state)
    )
    return dict(connection.execute(query).all())


def unfinished_parents(connection: Connection, job_id: int, limit: int) -> list[AnyRow]:
    """(id, state) of some that have not finished, those that failed first."""
    query = (
        select(jobs.c.id, jobs.c.state)
        .join(job_edges, job_edges.c.parent_id == jobs.c.id)
        .where(job_edges.c.child_id == job_id, jobs.c.state != JobState.JOB_FINISHED.value)
        .order_by(case((jobs.c.state.in_(_FAILED), 0), else_=1), jobs.c.id)
        .limit(limit)
    )
    return list(connection.execute(query))


def living_sessions(connection: Connection, site_id: int, now: int) -> list[AnyRow]:
    """Of launchers at the site, and how many jobs each holds."""
    held = select(func.count()).where(jobs.c.session_id == sessions.c.id).scalar_subquery()
    query = select(sessions.c.id, sessions.c.batch_job_id, sessions.c.room, held.label("held"))
    return list(
        connection.execute(query.where(sessions.c.site_id == site_id, sessions.c.expires > now).order_by(sessions.c.id))
    )


def living_batch_jobs(connection: Connection, site_id: int) -> list[AnyRow]:
    """Of the site, those that have not ended."""
    over = [state.value for state in BATCH_JOB_ENDED]
    query = select(batch_jobs).where(batch_jobs.c.site_id == site_id, batch_jobs.c.state.not_in(over))
    return list(connection.execute(query.order_by(batch_jobs.c.id)))


def ahead(connection: Connection, job: AnyRow, limit: int) -> int:
    """How many runnable jobs of its site are given to launchers before this one, up to the limit; small ones first."""
    runnable = select(jobs.c.id).where(text(RUNNABLE_UNLEASED), jobs.c.site_id == job.site_id)
    # Ranges of the index; of a comparison of tuples, or of "or", SQLite makes none.
    smaller = runnable.where(jobs.c.num_nodes < job.num_nodes)
    alike = runnable.where(jobs.c.num_nodes == job.num_nodes)
    longer = alike.where(jobs.c.priority < job.priority)
    older = alike.where(jobs.c.priority == job.priority, jobs.c.id < job.id)
    some = union_all(smaller, longer, older).limit(limit).subquery()
    return int(connection.execute(select(func.count()).select_from(some)).scalar_one())


def in_state(connection: Connection, site_id: int, state: str) -> int:
    query = select(job_counts.c.count).where(job_counts.c.site_id == site_id, job_counts.c.state == state)
    return int(connection.execute(query).scalar() or 0)


def last_events(connection: Connection, owner_id: int, job_id: int, limit: int) -> list[AnyRow]:
    """The latest events of the job, the last one first."""
    query = (
        select(events.c.from_state, events.c.to_state, events.c.timestamp, events.c.data)
        .where(events.c.owner_id == owner_id, events.c.subject_id == job_id, events.c.kind == Kind.JOB.value)
        .order_by(events.c.id.desc())
        .limit(limit)
    )
    return list(connection.execute(query))


def unfinished_transfers(connection: Connection, job_id: int, direction: str) -> list[Any]:
    query = select(transfers.c.id, transfers.c.slot, transfers.c.state, transfers.c.transfer_info).where(
        transfers.c.job_id == job_id,
        transfers.c.direction == direction,
        transfers.c.state != TransferState.DONE.value,
    )
    return list(connection.execute(query.order_by(transfers.c.id)))
