"""Python apps on several ranks, under the real MPI that is installed beside the interpreter."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from balsam_exec.apps import payload
from balsam_exec.launcher.ranks import sweep
from balsam_exec.model.base import MAX_ENTITY
from balsam_exec.model.errors import JobFailed, PayloadError, TooLarge, WorkerDied
from balsam_exec.model.states import JobState
from tests.launcher.conftest import Running
from tests.launcher.fake_service import FakeService
from tests.support.processes import wait_gone, wait_until

Launch = Callable[..., Running]


class World:
    """Runs a function on several ranks."""

    def __init__(self, service: FakeService, site: Path) -> None:
        self.service = service
        self.site = site
        self.app = service.add_app(hooks=["run"], payload=payload.call_app(1).payload)

    def submit(self, function: Callable[..., Any], *args: Any, ranks: int = 2, **job: Any) -> int:
        call = payload.dump_call(function, args, {})
        return self.service.add_job(self.app, arguments=call, workdir="w", ranks_per_node=ranks, **job)

    def run(self, function: Callable[..., Any], *args: Any, ranks: int = 2, **job: Any) -> Any:
        job_id = self.submit(function, *args, ranks=ranks, **job)
        self.service.wait([job_id], timeout=60)
        assert not list((self.site / "exchange").iterdir()), "the files of the call are left"
        return payload.load_result(self.service.results[job_id])

    @property
    def output(self) -> str:
        return (self.site / "data/w/job.out").read_text()


@pytest.fixture
def world(service: FakeService, launch: Launch, tmp_path: Path) -> World:
    launch(cores=4)
    return World(service, tmp_path)


# --- what comes back


def test_the_value_of_rank_0_is_the_result(world: World) -> None:
    def total(factor: int) -> Any:
        from mpi4py import MPI

        everything = MPI.COMM_WORLD.gather(factor * MPI.COMM_WORLD.rank)
        print(f"rank-{MPI.COMM_WORLD.rank}; ", end="")
        return everything if MPI.COMM_WORLD.rank == 0 else lambda: "what other ranks return goes nowhere"

    assert world.run(total, 10, ranks=4) == [0, 10, 20, 30]
    assert sorted(world.output.split()) == [f"rank-{i};" for i in range(4)]


def test_an_app_as_in_the_documentation_of_balsam(world: World) -> None:
    """Seed 001, "Python App Capabilities and Limitations"."""

    class NumpyPlusMPI:
        def run(self, *dims: int) -> Any:
            import numpy as np
            from mpi4py import MPI

            if MPI.COMM_WORLD.Get_rank() == 0:
                return np.random.rand(*dims)
            return None

    app = world.service.add_app(hooks=["run"], payload=payload.dump_app(NumpyPlusMPI))
    job = world.service.add_job(app, arguments=payload.dump_arguments([5], {}), ranks_per_node=4)
    world.service.wait([job], timeout=60)
    assert payload.load_result(world.service.results[job]).shape == (5,)


def test_without_mpi4py(world: World) -> None:
    def names() -> Any:
        import os

        return os.environ["PMI_RANK"], os.path.basename(os.getcwd()), os.environ["BALSAM_JOB_ID"]

    assert world.run(names) == ("0", "w", "1")


# --- failures


@pytest.mark.parametrize("when", ["before MPI", "in a collective"])
def test_an_exception_on_one_rank_ends_the_others(world: World, when: str) -> None:
    def fall(when: str) -> None:
        import os
        import time

        if when == "before MPI" and os.environ["PMI_RANK"] == "2":
            raise KeyError("two")
        from mpi4py import MPI

        MPI.COMM_WORLD.barrier()
        if MPI.COMM_WORLD.rank == 2:
            raise KeyError("two")
        MPI.COMM_WORLD.barrier()
        time.sleep(60)

    with pytest.raises(KeyError, match="two") as caught:
        world.run(fall, when, ranks=3)
    remote = str(caught.value.__cause__)
    assert "on rank 2 of 3" in remote
    assert "in fall" in remote
    assert "rank.py" not in remote
    [error] = [r.data for reports in world.service.history.values() for r in reports if "error" in r.data]
    assert error["rank"] == 2
    assert "KeyError" in error["error"]
    assert "KeyError" in world.output


def test_all_ranks_raise(world: World) -> None:
    def divide() -> float:
        return 1 / 0

    with pytest.raises(ZeroDivisionError) as caught:
        world.run(divide)
    assert "of 2" in str(caught.value.__cause__)


def test_a_rank_that_dies(world: World) -> None:
    def die() -> None:
        import os

        from mpi4py import MPI

        if MPI.COMM_WORLD.rank == 1:
            os.kill(os.getpid(), 11)
        MPI.COMM_WORLD.barrier()

    with pytest.raises(WorkerDied):
        world.run(die)


def test_rank_0_ends_without_an_answer(world: World) -> None:
    with pytest.raises(WorkerDied, match="exit code 0"):
        world.run(os._exit, 0)


def test_sys_exit(world: World) -> None:
    def leave() -> None:
        import os
        import sys

        sys.exit(3 if os.environ["PMI_RANK"] == "1" else 0)

    with pytest.raises(JobFailed, match=r"(?s)on rank . of 2.*sys.exit: exit code"):
        world.run(leave)


def test_a_result_that_is_too_large(world: World) -> None:
    with pytest.raises(TooLarge, match=f"the limit is {MAX_ENTITY}"):
        world.run(bytes, MAX_ENTITY + 1)


def test_a_result_that_cannot_be_serialized(world: World) -> None:
    def generator() -> Any:
        return (i for i in range(3))

    with pytest.raises(PayloadError, match="cannot serialize"):
        world.run(generator)


def test_an_mpi_of_another_kind(world: World) -> None:
    """mpi4py then finds itself alone, on each of the ranks."""

    def alone() -> None:
        import os

        for name in [name for name in os.environ if name.startswith(("PMI_", "MPI_"))]:
            del os.environ[name]
        from mpi4py import MPI

        assert MPI.COMM_WORLD.size == 1

    with pytest.raises(JobFailed, match="another MPI than that which started 2 ranks: its world has 1"):
        world.run(alone)


def test_a_launcher_that_does_not_tell_the_ranks(world: World, tmp_path: Path) -> None:
    programs = {"mpiexec": 'shift 2; exec "$@"', "python": f'exec {sys.executable} "$@"'}
    for name, line in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    python = str(tmp_path / "python")
    world.app = world.service.add_app(hooks=["run"], payload=world.app.payload, python_exe=python)
    with pytest.raises(JobFailed, match="does not say which of 2 ranks this is"):
        world.run(os.getpid)


def test_an_interpreter_that_does_not_exist(service: FakeService, launch: Launch, tmp_path: Path) -> None:
    launch()
    app = service.add_app(hooks=["run"], payload=payload.call_app(1).payload, python_exe="/no/python")
    job = service.add_job(app, arguments=payload.dump_call(os.getpid, (), {}), ranks_per_node=2)
    service.wait([job])
    assert service.state[job] is JobState.RUN_ERROR
    assert "/no/python" in service.results[job].error


def test_a_job_without_a_workdir(world: World) -> None:
    (world.site / "data").mkdir()
    (world.site / "data/w").touch()
    with pytest.raises(JobFailed, match=r"could not be started: (Not a directory|File exists)"):
        world.run(os.getpid)


# --- kills


@pytest.mark.parametrize("stubborn", [False, True])
def test_nothing_is_left_of_the_ranks_of_a_killed_job(world: World, tmp_path: Path, stubborn: bool) -> None:
    def wait(directory: str, stubborn: bool) -> None:
        import os
        import pathlib
        import signal
        import time

        if stubborn:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        from mpi4py import MPI

        pathlib.Path(directory, str(os.getpid())).touch()
        MPI.COMM_WORLD.barrier()
        time.sleep(300)

    pids = tmp_path / "pids"
    pids.mkdir()
    job = world.submit(wait, str(pids), stubborn)
    wait_until(lambda: len(list(pids.iterdir())) == 2, 60, "both ranks run")
    world.service.order_kill(job)
    world.service.wait([job])
    assert world.service.state[job] is JobState.USER_KILLED
    for path in pids.iterdir():
        assert wait_gone(int(path.name), timeout=0)
    assert not list((tmp_path / "exchange").iterdir())


def test_what_launchers_that_were_killed_have_left_is_removed(tmp_path: Path) -> None:
    sweep(tmp_path / "exchange", lambda: pytest.fail("nobody needs to ask for sessions"))
    left = [tmp_path / "exchange" / name for name in ("7-1", "7-2", "8-1", "notes")]
    for path in left:
        path.mkdir(parents=True)
        (path / "call").touch()
    sweep(tmp_path / "exchange", lambda: {8, 9})
    assert [path.exists() for path in left] == [False, False, True, True]
