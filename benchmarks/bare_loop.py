"""The least that a command job costs: make its directory, open its output file, spawn `true`, wait. Nothing else."""

from __future__ import annotations

import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SLOTS = 2
TRUE = "/bin/true"


def run_one(directory: Path) -> None:
    directory.mkdir(parents=True)
    output = os.open(directory / "job.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        actions = [(os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, output, 2)]
        pid = os.posix_spawn(TRUE, ["true"], os.environ, file_actions=actions, setpgroup=0)
    finally:
        os.close(output)
    _, status = os.waitpid(pid, 0)
    if status:
        raise SystemExit(f"true ended with status {status}")


def rate(tasks: int) -> float:
    """Tasks a second."""
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(SLOTS) as pool:
        start = time.perf_counter()
        list(pool.map(run_one, [Path(name) / str(n) for n in range(tasks)]))
        return tasks / (time.perf_counter() - start)
