"""The first schema.

Revision ID: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# SQLite gives automatic ids only to a column that is exactly INTEGER.
_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "events",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("owner_id", _ID, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("subject_id", _ID, nullable=False),
        sa.Column("site_id", _ID, nullable=True),
        sa.Column("from_state", sa.Text(), nullable=False),
        sa.Column("to_state", sa.Text(), nullable=False),
        sa.Column("timestamp", sa.BigInteger(), nullable=False),
        sa.Column("data", sa.Text(), nullable=True),
        sa.CheckConstraint("kind IN ('app', 'batch_job', 'job', 'site')", name=op.f("ck_events_kind")),
        sa.PrimaryKeyConstraint("id", name="pk_events"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_events_feed", "events", ["owner_id", "id"], unique=False)
    op.create_index("ix_events_subject", "events", ["owner_id", "subject_id", "id"], unique=False)
    op.create_table(
        "users",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("username", sa.Text(), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=True),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
        sa.UniqueConstraint("username", name="uq_users_username"),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("owner_id", _ID, autoincrement=False, nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("answer", sa.LargeBinary(), nullable=True),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name="fk_idempotency_keys_owner_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("owner_id", "key", name="pk_idempotency_keys"),
    )
    op.create_index("ix_idempotency_keys_created", "idempotency_keys", ["created"], unique=False)
    op.create_table(
        "sites",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("owner_id", _ID, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("hostname", sa.Text(), nullable=False),
        sa.Column("settings", sa.Text(), nullable=True),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("last_refresh", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name="fk_sites_owner_id"),
        sa.PrimaryKeyConstraint("id", name="pk_sites"),
        sa.UniqueConstraint("owner_id", "name", name="uq_sites_owner_id_name"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "tokens",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("user_id", _ID, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("expires", sa.BigInteger(), nullable=True),
        sa.Column("last_used", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_tokens_user_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_tokens"),
        sa.UniqueConstraint("hash", name="uq_tokens_hash"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_tokens_user_id", "tokens", ["user_id"], unique=False)
    op.create_table(
        "apps",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("owner_id", _ID, nullable=False),
        sa.Column("site_id", _ID, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=True),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("last_update", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name="fk_apps_owner_id"),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name="fk_apps_site_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_apps"),
        sa.UniqueConstraint("site_id", "name", name="uq_apps_site_id_name"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_apps_owner_id", "apps", ["owner_id"], unique=False)
    op.create_table(
        "batch_jobs",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("owner_id", _ID, nullable=False),
        sa.Column("site_id", _ID, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("scheduler_id", sa.Text(), nullable=True),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("job_mode", sa.Text(), nullable=False),
        sa.Column("num_nodes", sa.Integer(), nullable=False),
        sa.Column("wall_time_min", sa.Integer(), nullable=False),
        sa.Column("settings", sa.Text(), nullable=True),
        sa.Column("status_info", sa.Text(), nullable=True),
        sa.Column("start_time", sa.BigInteger(), nullable=True),
        sa.Column("end_time", sa.BigInteger(), nullable=True),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "state IN ('finished', 'pending_deletion', 'pending_submission', 'queued', 'running', 'submit_failed')",
            name=op.f("ck_batch_jobs_state"),
        ),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name="fk_batch_jobs_owner_id"),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name="fk_batch_jobs_site_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_batch_jobs"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_batch_jobs_owner_id", "batch_jobs", ["owner_id"], unique=False)
    op.create_index("ix_batch_jobs_site_id", "batch_jobs", ["site_id"], unique=False)
    op.create_table(
        "job_counts",
        sa.Column("site_id", _ID, autoincrement=False, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("owner_id", _ID, nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("count >= 0", name=op.f("ck_job_counts_count")),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name="fk_job_counts_owner_id"),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name="fk_job_counts_site_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("site_id", "state", name="pk_job_counts"),
    )
    op.create_index("ix_job_counts_owner_id", "job_counts", ["owner_id"], unique=False)
    op.create_table(
        "sessions",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("owner_id", _ID, nullable=False),
        sa.Column("site_id", _ID, nullable=False),
        sa.Column("batch_job_id", _ID, nullable=True),
        sa.Column("ttl", sa.BigInteger(), nullable=False),
        sa.Column("expires", sa.BigInteger(), nullable=False),
        sa.Column("acquire_key", sa.Text(), nullable=True),
        sa.Column("acquired_ids", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["batch_job_id"], ["batch_jobs.id"], name="fk_sessions_batch_job_id"),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name="fk_sessions_owner_id"),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name="fk_sessions_site_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_sessions"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_sessions_batch_job_id", "sessions", ["batch_job_id"], unique=False)
    op.create_index("ix_sessions_expires", "sessions", ["expires"], unique=False)
    op.create_index("ix_sessions_owner_id", "sessions", ["owner_id"], unique=False)
    op.create_index("ix_sessions_site_id", "sessions", ["site_id"], unique=False)
    op.create_table(
        "jobs",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("owner_id", _ID, nullable=False),
        sa.Column("site_id", _ID, nullable=False),
        sa.Column("app_id", _ID, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("steps", sa.SmallInteger(), nullable=False),
        sa.Column("pending_parents", sa.Integer(), nullable=False),
        sa.Column("session_id", _ID, nullable=True),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("batch_job_id", _ID, nullable=True),
        sa.Column("return_code", sa.BigInteger(), nullable=True),
        sa.Column("num_nodes", sa.Integer(), nullable=False),
        sa.Column("ranks_per_node", sa.Integer(), nullable=False),
        sa.Column("threads_per_rank", sa.Integer(), nullable=False),
        sa.Column("threads_per_core", sa.Integer(), nullable=False),
        sa.Column("gpus_per_rank", sa.Float(), nullable=False),
        sa.Column("node_packing_count", sa.Integer(), nullable=False),
        sa.Column("wall_time_min", sa.Integer(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("last_update", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "session_id IS NULL OR state IN ('PREPROCESSED', 'RESTART_READY', 'RUNNING')",
            name=op.f("ck_jobs_leased_can_run"),
        ),
        sa.CheckConstraint("state <> 'RUNNING' OR session_id IS NOT NULL", name=op.f("ck_jobs_running_is_leased")),
        sa.CheckConstraint(
            "state IN ('AWAITING_PARENTS', 'FAILED', 'JOB_FINISHED', 'POSTPROCESSED', 'PREPROCESSED', "
            "'READY', 'RESTART_READY', 'RUNNING', 'RUN_DONE', 'RUN_ERROR', 'RUN_TIMEOUT', "
            "'STAGED_IN', 'STAGED_OUT', 'USER_KILLED')",
            name=op.f("ck_jobs_state"),
        ),
        sa.CheckConstraint("pending_parents >= 0", name=op.f("ck_jobs_pending_parents")),
        sa.ForeignKeyConstraint(["app_id"], ["apps.id"], name="fk_jobs_app_id"),
        sa.ForeignKeyConstraint(["batch_job_id"], ["batch_jobs.id"], name="fk_jobs_batch_job_id", ondelete="SET NULL"),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name="fk_jobs_owner_id"),
        sa.ForeignKeyConstraint(["session_id"], ["sessions.id"], name="fk_jobs_session_id"),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name="fk_jobs_site_id"),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_jobs_app_id", "jobs", ["app_id"], unique=False)
    op.create_index(
        "ix_jobs_batch_job",
        "jobs",
        ["batch_job_id"],
        unique=False,
        sqlite_where=sa.text("batch_job_id IS NOT NULL"),
        postgresql_where=sa.text("batch_job_id IS NOT NULL"),
    )
    op.create_index("ix_jobs_listing", "jobs", ["owner_id", "id"], unique=False)
    op.create_index(
        "ix_jobs_runnable",
        "jobs",
        ["site_id", "priority", "id"],
        unique=False,
        sqlite_where=sa.text("state IN ('PREPROCESSED', 'RESTART_READY') AND session_id IS NULL"),
        postgresql_where=sa.text("state IN ('PREPROCESSED', 'RESTART_READY') AND session_id IS NULL"),
    )
    op.create_index(
        "ix_jobs_session",
        "jobs",
        ["session_id"],
        unique=False,
        sqlite_where=sa.text("session_id IS NOT NULL"),
        postgresql_where=sa.text("session_id IS NOT NULL"),
    )
    op.create_index("ix_jobs_site", "jobs", ["site_id", "id"], unique=False)
    op.create_index("ix_jobs_state", "jobs", ["owner_id", "state", "id"], unique=False)
    op.create_table(
        "job_edges",
        sa.Column("parent_id", _ID, autoincrement=False, nullable=False),
        sa.Column("child_id", _ID, nullable=False),
        sa.ForeignKeyConstraint(["child_id"], ["jobs.id"], name="fk_job_edges_child_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["parent_id"], ["jobs.id"], name="fk_job_edges_parent_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("parent_id", "child_id", name="pk_job_edges"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_job_edges_child_id", "job_edges", ["child_id"], unique=False)
    op.create_table(
        "job_payloads",
        sa.Column("job_id", _ID, autoincrement=False, nullable=False),
        sa.Column("workdir", sa.Text(), nullable=False),
        sa.Column("tags", sa.Text(), nullable=True),
        sa.Column("data", sa.Text(), nullable=True),
        sa.Column("parameters", sa.Text(), nullable=True),
        sa.Column("launch_params", sa.Text(), nullable=True),
        sa.Column("transfers", sa.Text(), nullable=True),
        sa.Column("arguments", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_payloads_job_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", name="pk_job_payloads"),
    )
    op.create_table(
        "job_results",
        sa.Column("job_id", _ID, autoincrement=False, nullable=False),
        sa.Column("ok", sa.Boolean(), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=True),
        sa.Column("exception", sa.LargeBinary(), nullable=True),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("return_code", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_results_job_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", name="pk_job_results"),
    )
    op.create_table(
        "job_tags",
        sa.Column("owner_id", _ID, nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("job_id", _ID, nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_tags_job_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("owner_id", "key", "value", "job_id", name="pk_job_tags"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_job_tags_job_id", "job_tags", ["job_id"], unique=False)
    op.create_table(
        "transfers",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("owner_id", _ID, nullable=False),
        sa.Column("job_id", _ID, nullable=False),
        sa.Column("site_id", _ID, nullable=False),
        sa.Column("slot", sa.Text(), nullable=False),
        sa.Column("direction", sa.Text(), nullable=False),
        sa.Column("location", sa.Text(), nullable=False),
        sa.Column("remote_path", sa.Text(), nullable=False),
        sa.Column("local_path", sa.Text(), nullable=False),
        sa.Column("recursive", sa.Boolean(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("task_id", sa.Text(), nullable=True),
        sa.Column("transfer_info", sa.Text(), nullable=True),
        sa.CheckConstraint("direction IN ('in', 'out')", name=op.f("ck_transfers_direction")),
        sa.CheckConstraint(
            "state IN ('active', 'awaiting_job', 'done', 'failed', 'pending')", name=op.f("ck_transfers_state")
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_transfers_job_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name="fk_transfers_owner_id"),
        sa.PrimaryKeyConstraint("id", name="pk_transfers"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_transfers_job_id", "transfers", ["job_id"], unique=False)
    op.create_index("ix_transfers_state", "transfers", ["owner_id", "site_id", "state", "id"], unique=False)


def downgrade() -> None:
    for table in (
        "transfers",
        "job_tags",
        "job_results",
        "job_payloads",
        "job_edges",
        "jobs",
        "sessions",
        "job_counts",
        "batch_jobs",
        "apps",
        "tokens",
        "sites",
        "idempotency_keys",
        "users",
        "events",
    ):
        op.drop_table(table)
