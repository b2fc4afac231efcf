"""What srun says of its ranks, and what of that is to be believed; with stand-ins for Slurm's commands."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from balsam_exec.launcher.launcher import Mission
from balsam_exec.launcher.pilot import Terms
from balsam_exec.model.sessions import Report
from balsam_exec.model.states import JobState
from balsam_exec.platform.nodes import local_node
from tests.launcher.conftest import Running
from tests.launcher.fake_service import FakeService
from tests.support.processes import wait_until

#: Its ranks go on until there is a file `over`; then it exits with 0.
RANKS = """\
for word; do [[ $word != --job-name=* ]] || echo "${word#*=}" >step; done
while [ ! -e over ]; do sleep 0.02; done
"""


@pytest.fixture
def run(
    service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[int, Running]]]:
    """`run(srun=SCRIPT, ...)` runs a job of two ranks, by commands that do this in its workdir; by default one of a
    command app."""
    started: list[Running] = []

    def run(app: dict[str, Any] | None = None, **commands: str) -> tuple[int, Running]:
        directory = tmp_path / "bin"
        directory.mkdir()
        for name, script in commands.items():
            (directory / name).write_text(f"#!/bin/bash\ncd {tmp_path}/data/job\n{script}\n")
            (directory / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
        monkeypatch.setenv("SLURM_JOB_ID", "1")
        app_record = service.add_app(**(app or {"command_template": "true"}))
        job_id = service.add_job(app_record, workdir="job", ranks_per_node=2)
        node = local_node(2, 0, environ={}, dev=tmp_path)
        terms = Terms(ttl=service.ttl, grace=20)
        mission = Mission(tmp_path / "data", tmp_path / "exchange", (node,), terms, mpi_launcher="srun")
        started.append(Running(service, mission))
        return job_id, started[-1]

    yield run
    for running in started:
        running.stop()


def drained(service: FakeService, tmp_path: Path, job_id: int, running: Running) -> Report:
    """The last report of a job whose launcher is told to end while it runs."""
    wait_until((tmp_path / "data/job/step").exists, 20, "srun to run")
    running.launcher.drain("enough")
    running.join()
    return service.history[job_id][-1]


def test_ranks_that_are_told_to_end_are_cut_short(
    service: FakeService, run: Callable[..., tuple[int, Running]], tmp_path: Path
) -> None:
    """Whatever code they exit with: perhaps they have just written a checkpoint."""
    job_id, running = run(srun=RANKS, squeue='echo "1.7 other"; echo "1.8 $(cat step)"', scancel='echo "$@" >over')
    assert drained(service, tmp_path, job_id, running).state is JobState.RUN_TIMEOUT
    assert (tmp_path / "data/job/over").read_text() == "--ctld --signal=TERM 1.8\n"


@pytest.mark.parametrize(
    "commands",
    [
        {"squeue": "touch over", "scancel": "exit 1"},
        {"squeue": 'echo "1.8 $(cat step)"', "scancel": "touch over; sleep 0.3; exit 1"},
    ],
    ids=["before Slurm was asked", "while it was asked"],
)
def test_ranks_that_ended_before_they_could_be_told_are_done(
    service: FakeService, run: Callable[..., tuple[int, Running]], tmp_path: Path, commands: dict[str, str]
) -> None:
    """And srun, which tells of it a little later, has been told to end meanwhile."""
    job_id, running = run(srun=RANKS, **commands)
    assert drained(service, tmp_path, job_id, running).state is JobState.RUN_DONE


@pytest.mark.parametrize("app", [None, {"hooks": ["run"], "payload": b"never read"}], ids=["a command", "Python"])
def test_a_failed_node_is_neither_success_nor_failure(
    service: FakeService, run: Callable[..., tuple[int, Running]], app: dict[str, Any] | None
) -> None:
    """Slurm 22.05's srun exits with 0 then, too."""
    job_id, _ = run(app, srun='echo "srun: error: Node failure on node02" >&2; echo "srun: Job step aborted"; exit 0')
    wait_until(lambda: service.history.get(job_id, [])[1:] != [], 20, "the job to end")
    last = service.history[job_id][1]
    assert (last.state, last.data) == (JobState.RUN_TIMEOUT, {"error": "Node failure on node02"})
    assert last.result is None
