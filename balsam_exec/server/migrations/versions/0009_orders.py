"""The orders in which launchers take jobs.

Revision ID: 0009
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_RUNNABLE = "state IN ('PREPROCESSED', 'RESTART_READY') AND session_id IS NULL"


def upgrade() -> None:
    op.drop_index("ix_jobs_runnable", "jobs")
    _create("ix_jobs_runnable", ["site_id", "num_nodes", "priority", "id"], _RUNNABLE)
    _create(
        "ix_jobs_long", ["site_id", "priority", sa.text("num_nodes DESC"), "id"], f"{_RUNNABLE} AND wall_time_min > 0"
    )
    _create("ix_jobs_wide", ["site_id", "kill_requested", "id"], f"{_RUNNABLE} AND num_nodes <> 1")


def downgrade() -> None:
    for name in ("ix_jobs_wide", "ix_jobs_long", "ix_jobs_runnable"):
        op.drop_index(name, "jobs")
    _create("ix_jobs_runnable", ["site_id", "priority", "id"], _RUNNABLE)


def _create(name: str, columns: list[Any], condition: str) -> None:
    where = sa.text(condition)
    op.create_index(name, "jobs", columns, sqlite_where=where, postgresql_where=where)
