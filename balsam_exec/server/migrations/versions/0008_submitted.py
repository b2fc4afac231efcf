"""What the scheduler of a batch job was told last, where more may be wanted by now.

Revision ID: 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("batch_jobs", sa.Column("submitted", sa.Text()))


def downgrade() -> None:
    op.drop_column("batch_jobs", "submitted")
