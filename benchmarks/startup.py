"""What it takes to start, and what it takes to sit there: `balsam up`, imports, memory and CPU of idle processes."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import psutil

from benchmarks.harness import Report, main

IDLE_SEC = 10.0


def import_ms() -> float:
    code = "import time; t = time.perf_counter(); import balsam_exec; print(1e3 * (time.perf_counter() - t))"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def up_seconds(environment: dict[str, str]) -> float:
    start = time.perf_counter()
    balsam("up", environment)
    return time.perf_counter() - start


def balsam(command: str, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "balsam", command], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"balsam {command}: {done.stdout}{done.stderr}")


def processes(home: str) -> dict[str, psutil.Process]:
    """The processes of the deployment at `home`, by the module they run."""
    found = {}
    for process in psutil.process_iter():
        try:
            if process.environ().get("BALSAM_HOME") == home:
                command = process.cmdline()
                if "-m" in command:
                    found[command[command.index("-m") + 1].removeprefix("balsam_exec.")] = process
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


LAUNCH = """
from balsam_exec.api import BatchJob, Site
from balsam_exec.model.states import BatchJobState
site = Site.objects.first()
job = BatchJob.objects.create(site_id=site.id, num_nodes=1, wall_time_min=10, idle_ttl_sec=600)
import time
deadline = time.monotonic() + 30
while job.state != BatchJobState.RUNNING and time.monotonic() < deadline:
    time.sleep(0.1)
    job.refresh_from_db()
"""


def measure(options: argparse.Namespace) -> Report:
    report = Report("Starting, and sitting idle")
    imports = [import_ms() for _ in range(options.rounds * 3)]
    report.add("`import balsam_exec`", imports, "ms", "under 50", median(imports) < 50)
    first, again = [], []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as home:
            environment = {**os.environ, "BALSAM_HOME": home}
            first.append(up_seconds(environment))
            balsam("down", environment)
            again.append(up_seconds(environment))
            balsam("down", environment)
    report.add("`balsam up`, the first time", first, "s", "under 3", median(first) < 3)
    report.add("`balsam up`, again", again, "s", "under 3", median(again) < 3)
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "BALSAM_HOME": home}
        balsam("up", environment)
        try:
            subprocess.run([sys.executable, "-c", LAUNCH], env=environment, check=True)
            idle(report, processes(home))
        finally:
            balsam("down", environment)
    return report


def idle(report: Report, found: dict[str, psutil.Process]) -> None:
    time.sleep(2)  # what starting left to do
    before = {name: sum(process.cpu_times()[:2]) for name, process in found.items()}
    time.sleep(IDLE_SEC)
    limits = {"server": 120, "launcher": 60}
    for name, process in sorted(found.items()):
        memory = process.memory_info().rss / 2**20
        limit = limits.get(name)
        report.add(
            f"{name}: memory", [memory], "MiB", f"under {limit}" if limit else "", memory < limit if limit else None
        )
        load = 100 * (sum(process.cpu_times()[:2]) - before[name]) / IDLE_SEC
        report.add(f"{name}: CPU", [load], "%", "near 0", load < 1)


if __name__ == "__main__":
    main(measure)
