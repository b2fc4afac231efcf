"""Output files of jobs, and requests to read files.

Revision ID: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("job_payloads", sa.Column("stdout", sa.Text(), nullable=True))
    op.add_column("job_payloads", sa.Column("stderr", sa.Text(), nullable=True))
    op.create_table(
        "file_requests",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("owner_id", _ID, nullable=False),
        sa.Column("site_id", _ID, nullable=False),
        sa.Column("job_id", _ID, nullable=False),
        sa.Column("workdir", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("start", sa.BigInteger(), nullable=False),
        sa.Column("length", sa.Integer(), nullable=False),
        sa.Column("expires", sa.BigInteger(), nullable=False),
        sa.Column("answer", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name="fk_file_requests_owner_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name="fk_file_requests_site_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_file_requests"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_file_requests_owner_id", "file_requests", ["owner_id"], unique=False)
    op.create_index("ix_file_requests_site_id", "file_requests", ["site_id"], unique=False)


def downgrade() -> None:
    op.drop_table("file_requests")
    op.drop_column("job_payloads", "stderr")
    op.drop_column("job_payloads", "stdout")
