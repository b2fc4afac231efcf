"""What the launcher of a session can take.

Revision ID: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("sessions", sa.Column("room", sa.Text()))


def downgrade() -> None:
    op.drop_column("sessions", "room")
