"""Jobs of several ranks under Open MPI, where it is installed as Debian does: as `mpiexec.openmpi`."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from balsam_exec.model.jobs import CPU_AFFINITY
from balsam_exec.model.states import JobState
from balsam_exec.platform.cpus import cores_of
from tests.launcher.conftest import Running
from tests.launcher.fake_service import FakeService
from tests.launcher.test_affinity import SHOW, cpus_in
from tests.launcher.test_ranks import World
from tests.support.processes import wait_gone, wait_until

MPIEXEC = shutil.which("mpiexec.openmpi")
CORES = cores_of(os.sched_getaffinity(0))

pytestmark = pytest.mark.skipif(MPIEXEC is None, reason="Open MPI is not installed")

ENVIRONMENT = {
    "MPI4PY_MPIABI": "openmpi",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}


@pytest.fixture
def world(service: FakeService, launch: Callable[..., Running], tmp_path: Path) -> World:
    """With an interpreter that has this MPI beside it."""
    launch(cores=len(CORES))
    python = tmp_path / "bin/python"
    python.parent.mkdir()
    for path, target in ((python, sys.executable), (python.with_name("mpiexec"), MPIEXEC)):
        path.write_text(f'#!/bin/sh\nexec {target} "$@"\n')
        path.chmod(0o755)
    made = World(service, tmp_path)
    fields = {"python_exe": str(python), "environment_variables": ENVIRONMENT}
    made.app = service.add_app(hooks=["run"], payload=made.app.payload, **fields)
    return made


def command(world: World, line: str) -> Any:
    path = {"PATH": f"{world.site / 'bin'}:{os.environ['PATH']}"}
    return world.service.add_app(command_template=line, environment_variables={**ENVIRONMENT, **path})


def test_more_ranks_than_cores(world: World) -> None:
    def total() -> int:
        from mpi4py import MPI

        return int(MPI.COMM_WORLD.allreduce(1))

    ranks = len(CORES) + 1
    assert world.run(total, ranks=ranks) == ranks


def test_an_exception_on_one_rank_ends_the_others(world: World) -> None:
    def fall() -> None:
        from mpi4py import MPI

        if MPI.COMM_WORLD.rank == 1:
            raise KeyError("one")
        MPI.COMM_WORLD.barrier()

    with pytest.raises(KeyError, match="one") as caught:
        world.run(fall)
    assert "on rank 1 of 2" in str(caught.value.__cause__)


def test_ranks_are_not_bound_by_themselves(world: World) -> None:
    job = world.service.add_job(command(world, SHOW), workdir="w", ranks_per_node=2)
    world.service.wait([job], timeout=60)
    assert cpus_in(world.site / "data/w/job.out") == [os.sched_getaffinity(0)] * 2


@pytest.mark.skipif(len(CORES) < 2, reason="there is only one core to be bound to")
def test_ranks_have_a_core_each(world: World) -> None:
    bound = {CPU_AFFINITY: "depth"}
    job = world.service.add_job(command(world, SHOW), workdir="w", ranks_per_node=2, launch_params=bound)
    world.service.wait([job], timeout=60)
    assert sorted(map(max, cpus_in(world.site / "data/w/job.out"))) == sorted([CORES[0][0], CORES[1][0]])


def test_nothing_is_left_of_the_ranks_of_a_killed_job(world: World, tmp_path: Path) -> None:
    """Even where they do not listen to SIGTERM: then mpiexec is killed, which leaves its ranks behind."""

    def wait(directory: str) -> None:
        import pathlib
        import signal
        import time

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        pathlib.Path(directory, str(os.getpid())).touch()
        time.sleep(300)

    pids = tmp_path / "pids"
    pids.mkdir()
    job = world.submit(wait, str(pids))
    wait_until(lambda: len(list(pids.iterdir())) == 2, 60, "both ranks run")
    world.service.order_kill(job)
    world.service.wait([job])
    assert world.service.state[job] is JobState.USER_KILLED
    assert all(wait_gone(int(path.name), timeout=0) for path in pids.iterdir())
