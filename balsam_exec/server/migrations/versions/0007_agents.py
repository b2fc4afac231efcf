"""The lease by which one agent at a time serves a site, and what that agent says of itself.

Revision ID: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("sites", sa.Column("agent", sa.Text()))
    op.add_column("sites", sa.Column("agent_holder", sa.Text()))
    op.add_column("sites", sa.Column("agent_expires", sa.BigInteger()))


def downgrade() -> None:
    for column in ("agent_expires", "agent_holder", "agent"):
        op.drop_column("sites", column)
