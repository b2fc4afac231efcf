"""Marks of tags at the jobs.

Revision ID: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("tag_marks", sa.BigInteger()))


def downgrade() -> None:
    op.drop_column("jobs", "tag_marks")
