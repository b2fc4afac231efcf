"""What becomes of jobs whose parents fail, files from parents, and how often a job has run.

Revision ID: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_FAILED_PARENTS = (
    "SELECT count(*) FROM job_edges JOIN jobs AS parents ON parents.id = job_edges.parent_id "
    "WHERE job_edges.child_id = jobs.id AND parents.state IN ('FAILED', 'USER_KILLED')"
)


def upgrade() -> None:
    # In words that both databases take: SQLite adds no named constraint to a table, but one with a column.
    op.execute(
        "ALTER TABLE jobs ADD COLUMN on_parent_failure TEXT DEFAULT 'fail' NOT NULL "
        "CONSTRAINT ck_jobs_on_parent_failure CHECK (on_parent_failure IN ('fail', 'hold', 'run'))"
    )
    op.execute(
        "ALTER TABLE jobs ADD COLUMN failed_parents INTEGER DEFAULT 0 NOT NULL "
        "CONSTRAINT ck_jobs_failed_parents CHECK (failed_parents BETWEEN 0 AND pending_parents)"
    )
    op.add_column("jobs", sa.Column("root_cause", sa.BigInteger(), nullable=True))
    op.add_column("jobs", sa.Column("num_runs", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.add_column("job_payloads", sa.Column("input_files", sa.Text(), nullable=True))
    op.execute(f"UPDATE jobs SET failed_parents = ({_FAILED_PARENTS}) WHERE id IN (SELECT child_id FROM job_edges)")
    # What waits for a failed parent has done so until now, and goes on.
    op.execute("UPDATE jobs SET on_parent_failure = 'hold' WHERE state = 'AWAITING_PARENTS' AND failed_parents > 0")
    op.execute(
        "UPDATE jobs SET num_runs = 1 WHERE session_id IS NOT NULL OR batch_job_id IS NOT NULL "
        "OR return_code IS NOT NULL OR state IN ('RESTART_READY', 'JOB_FINISHED')"
    )


def downgrade() -> None:
    op.drop_column("job_payloads", "input_files")
    for column in ("num_runs", "root_cause", "failed_parents", "on_parent_failure"):
        op.execute(f"ALTER TABLE jobs DROP COLUMN {column}")
