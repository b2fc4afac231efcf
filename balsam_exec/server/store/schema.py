"""The tables: one schema for SQLite and PostgreSQL, which keeps the invariants (docs/architecture.md).

The hot table, `jobs`, is narrow; what only some requests read lies in tables of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from balsam_exec.model.events import Kind
from balsam_exec.model.states import RUNNABLE, BatchJobState, JobState, OnParentFailure
from balsam_exec.model.transfers import TransferState
from balsam_exec.server.store.types import JsonList, JsonText, Moment

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite gives automatic ids, and never the same twice, only to a column that is exactly INTEGER.
BigId = BigInteger().with_variant(Integer(), "sqlite")


def _id() -> Column[int]:
    return Column("id", BigId, primary_key=True, autoincrement=True)


def _refers(name: str, target: str, *, ondelete: str | None = None, **options: Any) -> Column[int]:
    return Column(name, BigId, ForeignKey(target, ondelete=ondelete), **{"nullable": False, **options})


def _one_of(column: str, values: Iterable[StrEnum]) -> CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in sorted(values))
    return CheckConstraint(f"{column} IN ({listed})", name=column)


users = Table(
    "users",
    metadata,
    _id(),
    Column("username", Text, nullable=False, unique=True),
    Column("password_hash", Text),  # NULL: nobody can log in as this user
    Column("created", Moment, nullable=False),
)

tokens = Table(
    "tokens",
    metadata,
    _id(),
    _refers("user_id", "users.id", ondelete="CASCADE", index=True),
    Column("name", Text, nullable=False),
    Column("hash", LargeBinary(32), nullable=False, unique=True),  # SHA-256; the token itself is nowhere
    Column("created", Moment, nullable=False),
    Column("expires", Moment),
    Column("last_used", Moment),
    sqlite_autoincrement=True,
)

sites = Table(
    "sites",
    metadata,
    _id(),
    _refers("owner_id", "users.id"),
    Column("name", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("hostname", Text, nullable=False),
    Column("settings", JsonText),  # the rest of SiteSpec
    Column("created", Moment, nullable=False),
    Column("last_refresh", Moment),
    Column("agent", JsonText),  # an AgentBeat, of whoever has the lease
    Column("agent_holder", Text),
    Column("agent_expires", Moment),
    UniqueConstraint("owner_id", "name"),
    sqlite_autoincrement=True,
)

apps = Table(
    "apps",
    metadata,
    _id(),
    _refers("owner_id", "users.id", index=True),
    _refers("site_id", "sites.id", ondelete="CASCADE"),
    Column("name", Text, nullable=False),
    Column("spec", JsonText, nullable=False),  # AppSpec without site, name and payload
    Column("payload", LargeBinary),
    Column("digest", Text, nullable=False),
    Column("created", Moment, nullable=False),
    Column("last_update", Moment, nullable=False),
    UniqueConstraint("site_id", "name"),
    sqlite_autoincrement=True,
)

batch_jobs = Table(
    "batch_jobs",
    metadata,
    _id(),
    _refers("owner_id", "users.id", index=True),
    _refers("site_id", "sites.id", ondelete="CASCADE", index=True),
    Column("state", Text, nullable=False),
    Column("scheduler_id", Text),
    Column("queue", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("job_mode", Text, nullable=False),
    Column("num_nodes", Integer, nullable=False),
    Column("wall_time_min", Integer, nullable=False),
    Column("settings", JsonText),  # the rest of BatchJobSpec
    Column("status_info", JsonText),
    Column("start_time", Moment),
    Column("end_time", Moment),
    Column("created", Moment, nullable=False),
    Column("submitted", JsonText),  # an AllocationRequest: what the scheduler was told last
    _one_of("state", BatchJobState),
    sqlite_autoincrement=True,
)

sessions = Table(
    "sessions",
    metadata,
    _id(),
    _refers("owner_id", "users.id", index=True),
    _refers("site_id", "sites.id", ondelete="CASCADE", index=True),
    _refers("batch_job_id", "batch_jobs.id", nullable=True, index=True),
    Column("ttl", BigInteger, nullable=False),  # microseconds
    Column("expires", Moment, nullable=False, index=True),
    # The last acquire that gave something: asked again with the same key, it gives the same.
    Column("acquire_key", Text),
    Column("acquired_ids", JsonText),
    Column("room", JsonText),  # a Room: what its launcher will ask for
    sqlite_autoincrement=True,
)

#: The condition of the index of runnable jobs; a query that is to use it says it in these very words.
RUNNABLE_UNLEASED = "state IN ({}) AND session_id IS NULL".format(", ".join(f"'{s}'" for s in sorted(RUNNABLE)))

#: With it, those of two more indexes, which plain jobs do not enter.
TAKES_LONG = "wall_time_min > 0"
SEVERAL_NODES = "num_nodes <> 1"  # not ">", for which SQLite would rather take the other index, and sort

#: The condition of the index of jobs whose launcher is to kill them.
TO_KILL = "kill_requested"


def _where(condition: str) -> dict[str, Any]:
    return {"sqlite_where": text(condition), "postgresql_where": text(condition)}


jobs = Table(
    "jobs",
    metadata,
    _id(),
    _refers("owner_id", "users.id"),
    _refers("site_id", "sites.id"),
    _refers("app_id", "apps.id", index=True),
    Column("state", Text, nullable=False),
    Column("priority", Integer, nullable=False),  # minus wall_time_min: the lower the sooner
    Column("steps", SmallInteger, nullable=False),
    Column("pending_parents", Integer, nullable=False),  # parents that are not JOB_FINISHED
    _refers("session_id", "sessions.id", nullable=True),  # who holds the lease
    Column("epoch", Integer, nullable=False),
    _refers("batch_job_id", "batch_jobs.id", ondelete="SET NULL", nullable=True),
    Column("return_code", BigInteger),
    Column("num_nodes", Integer, nullable=False),
    Column("ranks_per_node", Integer, nullable=False),
    Column("threads_per_rank", Integer, nullable=False),
    Column("threads_per_core", Integer, nullable=False),
    Column("gpus_per_rank", Float, nullable=False),
    Column("node_packing_count", Integer, nullable=False),
    Column("wall_time_min", Integer, nullable=False),
    Column("created", Moment, nullable=False),
    Column("last_update", Moment, nullable=False),
    # Its launcher is to kill it: a matter of this lease, which ends with it.
    Column(
        "kill_requested",
        Boolean(create_constraint=False),
        CheckConstraint("NOT kill_requested OR session_id IS NOT NULL", name="killed_is_leased"),
        nullable=False,
        server_default=text("false"),
    ),
    Column("tag_marks", BigInteger),  # a bit for each tag, to wake only who may want to hear of it
    Column(
        "on_parent_failure",
        Text,
        _one_of("on_parent_failure", OnParentFailure),
        nullable=False,
        server_default=text("'fail'"),
    ),
    Column(  # parents that are FAILED or USER_KILLED
        "failed_parents",
        Integer,
        CheckConstraint("failed_parents BETWEEN 0 AND pending_parents", name="failed_parents"),
        nullable=False,
        server_default=text("0"),
    ),
    # The job whose end made this one fail before it could run; it may be gone by now.
    Column("root_cause", BigInteger),
    Column("num_runs", Integer, nullable=False, server_default=text("0")),  # leases that were not given back unused
    _one_of("state", set(JobState) - {JobState.CREATED}),
    CheckConstraint("pending_parents >= 0", name="pending_parents"),
    CheckConstraint("state <> 'RUNNING' OR session_id IS NOT NULL", name="running_is_leased"),
    CheckConstraint(
        "session_id IS NULL OR state IN ({})".format(
            ", ".join(f"'{s}'" for s in sorted(RUNNABLE | {JobState.RUNNING}))
        ),
        name="leased_can_run",
    ),
    # What launchers may take, in three orders: small first; of several nodes, the oldest first; long and large first.
    Index("ix_jobs_runnable", "site_id", "num_nodes", "priority", "id", **_where(RUNNABLE_UNLEASED)),
    # kill_requested is false in all of these; SQLite could not choose between this index and ix_jobs_site without it.
    Index("ix_jobs_wide", "site_id", "kill_requested", "id", **_where(f"{RUNNABLE_UNLEASED} AND {SEVERAL_NODES}")),
    Index("ix_jobs_listing", "owner_id", "id"),
    Index("ix_jobs_state", "owner_id", "state", "id"),
    Index("ix_jobs_site", "site_id", "id"),
    Index("ix_jobs_session", "session_id", **_where("session_id IS NOT NULL")),
    Index("ix_jobs_kill", "session_id", "id", **_where(TO_KILL)),
    Index("ix_jobs_batch_job", "batch_job_id", **_where("batch_job_id IS NOT NULL")),
    sqlite_autoincrement=True,
)

Index(
    "ix_jobs_long",
    *(jobs.c.site_id, jobs.c.priority, jobs.c.num_nodes.desc(), jobs.c.id),
    **_where(f"{RUNNABLE_UNLEASED} AND {TAKES_LONG}"),
)

job_payloads = Table(
    "job_payloads",
    metadata,
    _refers("job_id", "jobs.id", ondelete="CASCADE", primary_key=True, autoincrement=False),
    Column("workdir", Text, nullable=False),
    Column("tags", JsonText),
    Column("data", JsonText),
    Column("parameters", JsonText),
    Column("launch_params", JsonText),
    Column("transfers", JsonText),
    Column("arguments", LargeBinary),
    Column("stdout", Text),  # NULL: job.out
    Column("stderr", Text),  # NULL: together with stdout
    Column("input_files", JsonList),
)

job_tags = Table(
    "job_tags",
    metadata,
    Column("owner_id", BigId, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("value", Text, primary_key=True),
    _refers("job_id", "jobs.id", ondelete="CASCADE", primary_key=True, index=True),
    sqlite_with_rowid=False,
)

job_edges = Table(
    "job_edges",
    metadata,
    _refers("parent_id", "jobs.id", ondelete="CASCADE", primary_key=True, autoincrement=False),
    _refers("child_id", "jobs.id", ondelete="CASCADE", primary_key=True, index=True),
    sqlite_with_rowid=False,
)

job_results = Table(
    "job_results",
    metadata,
    _refers("job_id", "jobs.id", ondelete="CASCADE", primary_key=True, autoincrement=False),
    Column("ok", Boolean(create_constraint=False), nullable=False),
    Column("value", LargeBinary),
    Column("exception", LargeBinary),
    Column("error", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("return_code", BigInteger),
)

job_counts = Table(
    "job_counts",
    metadata,
    _refers("site_id", "sites.id", ondelete="CASCADE", primary_key=True, autoincrement=False),
    Column("state", Text, primary_key=True),
    _refers("owner_id", "users.id", index=True),
    Column("count", BigInteger, nullable=False),
    CheckConstraint("count >= 0", name="count"),
)

transfers = Table(
    "transfers",
    metadata,
    _id(),
    _refers("owner_id", "users.id"),
    _refers("job_id", "jobs.id", ondelete="CASCADE", index=True),
    Column("site_id", BigId, nullable=False),
    Column("slot", Text, nullable=False),
    Column("direction", Text, nullable=False),
    Column("location", Text, nullable=False),
    Column("remote_path", Text, nullable=False),
    Column("local_path", Text, nullable=False),
    Column("recursive", Boolean(create_constraint=False), nullable=False),
    Column("state", Text, nullable=False),
    Column("task_id", Text),
    Column("transfer_info", JsonText),
    _one_of("state", TransferState),
    CheckConstraint("direction IN ('in', 'out')", name="direction"),
    Index("ix_transfers_state", "owner_id", "site_id", "state", "id"),
    sqlite_autoincrement=True,
)

# Reads of files that a site's agent is to answer. They live for seconds, so what they are about is copied.
file_requests = Table(
    "file_requests",
    metadata,
    _id(),
    _refers("owner_id", "users.id", ondelete="CASCADE", index=True),
    _refers("site_id", "sites.id", ondelete="CASCADE", index=True),
    Column("job_id", BigId, nullable=False),
    Column("workdir", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("start", BigInteger, nullable=False),
    Column("length", Integer, nullable=False),
    Column("expires", Moment, nullable=False),
    Column("answer", LargeBinary),  # a FileAnswer, as JSON
    sqlite_autoincrement=True,
)

# The log, and what the feed hands out in the order of ids. It outlives what it tells of, so it refers to nothing.
events = Table(
    "events",
    metadata,
    _id(),
    Column("owner_id", BigId, nullable=False),
    Column("kind", Text, nullable=False),
    Column("subject_id", BigId, nullable=False),
    Column("site_id", BigId),
    Column("from_state", Text, nullable=False),
    Column("to_state", Text, nullable=False),
    Column("timestamp", Moment, nullable=False),
    Column("data", JsonText),
    _one_of("kind", Kind),
    Index("ix_events_feed", "owner_id", "id"),
    Index("ix_events_subject", "owner_id", "subject_id", "id"),
    sqlite_autoincrement=True,
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    _refers("owner_id", "users.id", ondelete="CASCADE", primary_key=True, autoincrement=False),
    Column("key", Text, primary_key=True),
    Column("digest", LargeBinary(32), nullable=False),  # of the request
    Column("answer", LargeBinary),
    Column("created", Moment, nullable=False, index=True),
)
