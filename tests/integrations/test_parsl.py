"""The Parsl dataflow at a small size: what it finds, where it ran, what Parsl recorded; nothing is left of it."""

from __future__ import annotations

import csv
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from balsam_exec.embedded import Deployment
from balsam_exec.model.states import BATCH_JOB_ENDED, JobState
from tests.support.processes import MARKER, Leftover, marked_processes, wait_gone, wait_until

DATAFLOW = Path(__file__).parents[2] / "integrations" / "parsl" / "dataflow.py"


def start(directory: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(DATAFLOW), "--directory", str(directory), *options]
    # In a process group of its own, as a terminal makes one for each command.
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def left() -> list[Leftover]:
    """The processes that this test has started, whoever their parents are, once they had time to end."""
    mine = [p for p in marked_processes(os.environ[MARKER]) if p.test == os.environ["PYTEST_CURRENT_TEST"]]
    return [p for p in mine if not wait_gone(p.pid, timeout=10)]


def test_the_dataflow_finds_the_transition(tmp_path: Path) -> None:
    directory = tmp_path / "a run"
    dataflow = start(directory, "--points", "4", "--sweeps", "200")
    out, err = dataflow.communicate(timeout=110)
    assert dataflow.returncode == 0, out + err
    assert left() == []
    assert err == ""
    assert "\x1b" not in out  # it is a pipe
    assert "First run: " in out
    assert "Left out: a lattice of size 16 at temperature 0.0 cannot be simulated." in out
    check_findings(directory)
    with closing(sqlite3.connect(directory / "runinfo" / "monitoring.db")) as monitoring:
        first, again = (run for (run,) in monitoring.execute("SELECT run_id FROM workflow ORDER BY time_began"))
        check_first_run(monitoring, first)
        check_second_run(monitoring, again)
    check_jobs(directory)


def check_findings(directory: Path) -> None:
    with open(directory / "ising.csv", newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert [row["size"] for row in rows] == [16] * 4 + [48] * 2
    coldest, *_, hottest = (row for row in rows if row["size"] == 16)
    assert coldest["temperature"] == 1.5
    # Onsager's solution of the infinite lattice; so far from the transition the size makes no difference.
    assert coldest["magnetization"] == pytest.approx(0.9865, abs=0.01)
    assert coldest["energy"] == pytest.approx(-1.9511, abs=0.02)
    assert hottest["magnetization"] < 0.25
    assert (directory / "ising.png").read_bytes().startswith(b"\x89PNG")
    output = directory / "points" / "T1.500-0.out"
    assert output.read_text() == "200 sweeps at T = 1.5\n"


#: How often each app is called, and where it runs.
CALLS = {
    ("configure", "small"): 10,
    ("simulate", "small"): 10,
    ("measure", "small"): 5,  # once in vain: Parsl counts a call whose dependencies failed
    ("refine", "_parsl_internal"): 1,
    ("relax", "large"): 2,
    ("tabulate", "small"): 1,
    ("plot", "small"): 1,
}


def check_first_run(monitoring: sqlite3.Connection, run: str) -> None:
    """Each app where it belongs, once; but the task that was killed twice."""
    ran = """SELECT task_func_name, task_executor, count(*) FROM task JOIN try USING (task_id, run_id)
             WHERE run_id = ? AND try_id = ? GROUP BY task_func_name, task_executor"""
    tries = [{(app, executor): n for app, executor, n in monitoring.execute(ran, (run, number))} for number in (0, 1)]
    assert tries == [CALLS, {("relax", "large"): 1}]
    assert states(monitoring, run, "memo_done") == 0
    assert states(monitoring, run, "failed") == 2  # both starts of the temperature that makes no sense
    assert states(monitoring, run, "dep_fail") == 1
    running = "SELECT DISTINCT executor_label FROM block WHERE run_id = ? AND status = 'RUNNING' ORDER BY 1"
    assert monitoring.execute(running, (run,)).fetchall() == [("large",), ("small",)]


def check_second_run(monitoring: sqlite3.Connection, run: str) -> None:
    """All that was done is taken from the checkpoint; what failed is tried again."""
    assert states(monitoring, run, "memo_done") == 10 + 8 + 4 + 1 + 1 + 1
    launched = """SELECT DISTINCT task_func_name, task_id FROM task JOIN status USING (task_id, run_id)
                  WHERE run_id = ? AND task_status_name = 'launched'"""
    assert [app for app, _ in monitoring.execute(launched, (run,))] == ["simulate", "simulate"]


def states(monitoring: sqlite3.Connection, run: str, name: str) -> Any:
    query = "SELECT count(*) FROM status WHERE run_id = ? AND task_status_name = ?"
    return monitoring.execute(query, (run, name)).fetchone()[0]


def check_jobs(directory: Path) -> None:
    """At the service: each try was a job, the larger lattices asked for more, every block has ended."""
    with Deployment.start(directory / "balsam", temporary=True) as deployment:
        service = deployment.service()
        jobs = service.jobs(limit=1000).results
        large = service.jobs(tags={"lattice": "large"}).results
        blocks = service.batch_jobs().results
    calls = sum(n for (_, executor), n in CALLS.items() if executor != "_parsl_internal") - 1
    assert len(jobs) == calls + 1 + 2  # the task that was killed, and what failed, in the second run
    assert sorted(job.state for job in large) == [JobState.FAILED, JobState.JOB_FINISHED, JobState.JOB_FINISHED]
    assert {(job.threads_per_rank, job.node_packing_count) for job in large} == {(len(os.sched_getaffinity(0)), 1)}
    assert len(blocks) == 4
    assert all(block.state in BATCH_JOB_ENDED for block in blocks)


@pytest.mark.parametrize(
    "sign",
    ["balsam", "runinfo/000", "points/T1.500-0.json"],
    ids=["while the service starts", "while Parsl starts", "while it runs"],
)
def test_ctrl_c_leaves_nothing_running(tmp_path: Path, sign: str) -> None:
    directory = tmp_path / "run"
    dataflow = start(directory, "--points", "8", "--sweeps", "100000")
    wait_until(lambda: (directory / sign).exists() or dataflow.poll() is not None, 60, sign)
    os.killpg(dataflow.pid, signal.SIGINT)
    out, err = dataflow.communicate(timeout=60)
    assert dataflow.returncode == 130, out + err
    assert err == "\nInterrupted; everything has been shut down.\n"
    assert left() == []
