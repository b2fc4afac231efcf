"""What it takes to start, and what it takes to sit there: `balsam up`, imports, memory and CPU of idle processes."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
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


def processes(home: str) -> dict[str, list[psutil.Process]]:
    """The processes of the deployment at `home`, by the module they run."""
    found = defaultdict(list)
    for process in psutil.process_iter():
        try:
            if process.environ().get("BALSAM_HOME") == home:
                command = process.cmdline()
                if "-m" in command:
                    found[command[command.index("-m") + 1].removeprefix("balsam_exec.")].append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


#: Starts a launcher and waits until it has run a job, and so is ready and idle.
LAUNCH = """
from balsam_exec.api import ApplicationDefinition, BatchJob, Job, Site
here = Site.objects.first()
class Nothing(ApplicationDefinition):
    site = here
    command_template = "true"
job = Nothing.submit("nothing")
BatchJob.objects.create(site_id=here.id, num_nodes=1, wall_time_min=10, idle_ttl_sec=600)
done, waiting = Job.objects.wait([job], timeout=60)
assert not waiting
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


def idle(report: Report, found: dict[str, list[psutil.Process]]) -> None:
    """Memory is the proportional set size: pages that processes share are counted once."""
    time.sleep(2)  # what starting left to do
    before = {name: cpu_seconds(group) for name, group in found.items()}
    time.sleep(IDLE_SEC)
    limits = {"server": 120, "launcher": 60}
    for name, group in sorted(found.items()):
        title = f"{name} ({len(group)} processes)" if len(group) > 1 else name
        memory = sum(process.memory_full_info().pss for process in group) / 2**20
        limit = limits.get(name)
        report.add(f"{title}: memory", [memory], "MiB", *(() if limit is None else (f"under {limit}", memory < limit)))
        load = 100 * (cpu_seconds(group) - before[name]) / IDLE_SEC
        report.add(f"{title}: CPU", [load], "%", "near 0", load < 1)


def cpu_seconds(group: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in group)


if __name__ == "__main__":
    main(measure)
