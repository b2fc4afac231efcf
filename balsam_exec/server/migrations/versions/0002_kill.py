"""Orders to kill what a launcher holds.

Revision ID: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # In words that both databases take: SQLite adds no named constraint to a table, but one with a column.
    op.execute(
        "ALTER TABLE jobs ADD COLUMN kill_requested BOOLEAN DEFAULT false NOT NULL "
        "CONSTRAINT ck_jobs_killed_is_leased CHECK (NOT kill_requested OR session_id IS NOT NULL)"
    )
    op.create_index(
        "ix_jobs_kill",
        "jobs",
        ["session_id", "id"],
        unique=False,
        sqlite_where=sa.text("kill_requested"),
        postgresql_where=sa.text("kill_requested"),
    )


def downgrade() -> None:
    op.drop_index("ix_jobs_kill", table_name="jobs")
    op.execute("ALTER TABLE jobs DROP COLUMN kill_requested")
