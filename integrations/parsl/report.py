"""What the dataflow shows of its results, and of what Parsl's monitoring has recorded."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
from rich.table import Table

#: A temperature and what was measured there, per spin.
Row = dict[str, float]
#: The temperature of the transition of an infinite lattice.
CRITICAL = 2 / np.log(1 + np.sqrt(2))


def peak(rows: list[Row]) -> float:
    """The temperature where the susceptibility is largest."""
    return max(rows, key=lambda row: row["susceptibility"])["temperature"]


def magnetizations(rows: list[Row]) -> Table:
    """Some rows of the scan, beside the exact solution for an infinite lattice (Onsager, Yang)."""
    found = Table(title="Magnetization", title_justify="left")
    for heading in ("temperature", f"{rows[0]['size']} x {rows[0]['size']}", "infinite"):
        found.add_column(heading, justify="right")
    for row in rows[:: max(len(rows) // 8, 1)]:
        temperature = row["temperature"]
        exact = (1 - np.sinh(2 / temperature) ** -4) ** 0.125 if temperature < CRITICAL else 0.0
        found.add_row(f"{temperature:.3f}", f"{row['magnetization']:.3f}", f"{exact:.3f}")
    return found


def monitored(database: Path) -> str:
    """What is known of the last run."""
    with closing(sqlite3.connect(database)) as connection:
        (run_id,) = connection.execute("SELECT run_id FROM workflow ORDER BY time_began DESC").fetchone()

        def count(query: str) -> int:
            return int(connection.execute(query, (run_id,)).fetchone()[0])

        tasks = count("SELECT count(*) FROM task WHERE run_id = ?")
        memoized = count("SELECT count(*) FROM status WHERE run_id = ? AND task_status_name = 'memo_done'")
        retried = count("SELECT count(DISTINCT task_id) FROM try WHERE run_id = ? AND try_id > 0")
        blocks = count("SELECT count(DISTINCT executor_label || block_id) FROM block WHERE run_id = ?")
    return f"{tasks} tasks, {memoized} from the checkpoint, {retried} tried again, {blocks} blocks"
