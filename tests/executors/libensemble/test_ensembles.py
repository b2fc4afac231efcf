"""Whole ensembles, each in a process and a directory of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from libensemble.message_numbers import MAN_SIGNAL_KILL, WORKER_DONE, WORKER_KILL_ON_TIMEOUT

from balsam_exec.embedded import Deployment
from balsam_exec.model.states import JobState
from tests.executors.libensemble.kills import CANCELLED, SHORT, TOO_LONG

HERE = Path(__file__).parent
DEADLINE = 90
BESIDE = Path(sys.executable).parent  #: where PyPI's mpich has its mpiexec


def start(script: str, *arguments: str, cwd: Path, ranks: int = 0) -> subprocess.Popen[str]:
    launcher = [str(BESIDE / "mpiexec"), "-n", str(ranks)] if ranks else []
    environment = {**os.environ, "BALSAM_SITE": "local", "PYTHONPATH": str(HERE.parents[2])}
    return subprocess.Popen(
        [*launcher, sys.executable, str(HERE / script), *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(ensemble: subprocess.Popen[str]) -> str:
    try:
        out, _ = ensemble.communicate(timeout=DEADLINE)
    except subprocess.TimeoutExpired:
        os.killpg(ensemble.pid, signal.SIGKILL)
        raise AssertionError(f"the ensemble hangs:\n{ensemble.communicate()[0]}") from None
    assert ensemble.returncode == 0, out
    return out


@pytest.mark.parametrize("mode", ["fork", "spawn", "forkserver", "threads", "mpi", "tcp", "manager"])
def test_workers_of_all_kinds(mode: str, deployment: Deployment, tmp_path: Path) -> None:
    arguments = ["--comms", "tcp", "--nworkers", "3"] if mode == "tcp" else [mode]
    assert "ensemble done" in finish(start("ensemble.py", *arguments, cwd=tmp_path, ranks=4 if mode == "mpi" else 0))
    service = deployment.service()
    states = service.job_states(tags={"libe": f"squares-{mode}"})
    assert [(item.state, item.count) for item in states if item.count] == [(JobState.JOB_FINISHED, 18)]


def test_kills(deployment: Deployment, tmp_path: Path) -> None:
    out = finish(start("kills.py", cwd=tmp_path))
    notes = {x: (tmp_path / f"{x}").read_text() for x in (TOO_LONG, CANCELLED, SHORT)}
    assert notes == {
        TOO_LONG: f"USER_KILLED {WORKER_KILL_ON_TIMEOUT}",
        CANCELLED: f"USER_KILLED {MAN_SIGNAL_KILL}",
        SHORT: f"FINISHED {WORKER_DONE}",
    }, out
    jobs = deployment.service().jobs(tags={"libe": "kills"}).results
    assert sorted(job.state for job in jobs) == [JobState.JOB_FINISHED, JobState.USER_KILLED, JobState.USER_KILLED]


@pytest.mark.usefixtures("allocation")
def test_a_restart_goes_on_with_the_tasks_there_are(deployment: Deployment, tmp_path: Path) -> None:
    name = f"restart-{os.getpid()}"
    service = deployment.service()
    first = start("restart.py", name, cwd=tmp_path)
    give_up = time.monotonic() + DEADLINE
    while service.count_jobs(tags={"libe": name}, state=JobState.RUNNING) < 3:
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < give_up
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    again = start("restart.py", name, cwd=tmp_path)
    (tmp_path / "go").touch()
    assert "ensemble done" in finish(again)
    assert service.count_jobs(tags={"libe": name}) == 3
