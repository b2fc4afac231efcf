"""Jobs of several ranks under a real MPI, which was installed beside the interpreter."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from balsam_exec.model.states import JobState
from tests.launcher.conftest import Running
from tests.launcher.fake_service import FakeService
from tests.support.processes import wait_gone, wait_until

Launch = Callable[..., Running]

PROGRAM = """\
import sys
from mpi4py import MPI

world = MPI.COMM_WORLD
total = world.reduce(world.rank + 1)
if world.rank == 0:
    print("total", total, "of", world.size)
    print("diagnostics", file=sys.stderr)
"""


def test_the_ranks_of_a_job_are_one_world(
    service: FakeService, launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    app = service.add_app(command_template=f"{sys.executable} {program}")
    launch(cores=4)
    job = service.add_job(app, workdir="w", ranks_per_node=4, stdout="out", stderr="err")
    service.wait([job], timeout=60)
    assert service.results[job].ok, service.results[job].error
    assert (tmp_path / "data/w/out").read_text() == "total 10 of 4\n"
    assert (tmp_path / "data/w/err").read_text() == "diagnostics\n"


def test_all_ranks_of_a_killed_command_are_gone(service: FakeService, launch: Launch, tmp_path: Path) -> None:
    app = service.add_app(command_template="echo $$ >> pids; exec sleep 300")
    launch(cores=4)
    job = service.add_job(app, workdir="w", ranks_per_node=4)
    pids = tmp_path / "data/w/pids"
    wait_until(lambda: pids.exists() and pids.read_text().count("\n") == 4, 60, "four ranks")
    service.order_kill(job)
    service.wait([job])
    assert service.state[job] is JobState.USER_KILLED
    assert all(wait_gone(int(pid), timeout=0) for pid in pids.read_text().split())
