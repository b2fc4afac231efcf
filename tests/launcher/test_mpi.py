"""Jobs of several ranks under a real MPI, which was installed beside the interpreter."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.launcher.conftest import Running
from tests.launcher.fake_service import FakeService

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
    service: FakeService, launch: Callable[..., Running], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
