"""Jobs that are bound to cores of their own (cpu_affinity "depth"), as the kernel has them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from balsam_exec.apps import payload
from balsam_exec.model.jobs import CPU_AFFINITY
from balsam_exec.platform.cpus import cores_of
from tests.launcher.conftest import Running
from tests.launcher.fake_service import FakeService
from tests.support.processes import wait_until

Launch = Callable[..., Running]
ALLOWED = os.sched_getaffinity(0)
CORES = cores_of(ALLOWED)
BOUND = {CPU_AFFINITY: "depth"}
SHOW = "grep Cpus_allowed_list /proc/self/status"

pytestmark = pytest.mark.skipif(len(CORES) < 2, reason="there is only one core to be bound to")


def cpus_in(path: Path) -> list[set[int]]:
    """What /proc/self/status said, line by line."""
    found = []
    for line in path.read_text().splitlines():
        ranges = [item.split("-") for item in line.split()[-1].split(",")]
        found.append({cpu for ends in ranges for cpu in range(int(ends[0]), int(ends[-1]) + 1)})
    return found


@pytest.mark.parametrize("site_says", [False, True])
def test_commands_have_a_core_each(service: FakeService, launch: Launch, tmp_path: Path, site_says: bool) -> None:
    launch(cores=2, affinity="depth" if site_says else "none")
    app = service.add_app(command_template=f"{SHOW}; read -t 20 x <> fifo")
    outputs = [tmp_path / f"data/{i}/job.out" for i in range(2)]
    for output in outputs:
        output.parent.mkdir(parents=True)
        os.mkfifo(output.parent / "fifo")
    params = {} if site_says else {"launch_params": BOUND}
    jobs = [service.add_job(app, workdir=str(i), node_packing_count=9, **params) for i in range(2)]
    wait_until(lambda: all(path.exists() and path.read_text() for path in outputs), 20, "both jobs at once")
    for output in outputs:
        (output.parent / "fifo").write_text("go\n")
    service.wait(jobs)
    assert sorted(map(cpus_in, outputs), key=str) == sorted([[{CORES[0][0]}], [{CORES[1][0]}]], key=str)


def test_others_may_run_anywhere(service: FakeService, launch: Launch, tmp_path: Path) -> None:
    launch(affinity="depth")
    job = service.add_job(service.add_app(command_template=SHOW), workdir="w", launch_params={CPU_AFFINITY: "none"})
    service.wait([job])
    assert cpus_in(tmp_path / "data/w/job.out") == [ALLOWED]


def test_all_hardware_threads_of_a_core(service: FakeService, launch: Launch, tmp_path: Path) -> None:
    launch()
    threads = {"threads_per_rank": 2 * len(CORES[0]), "threads_per_core": len(CORES[0])}
    job = service.add_job(service.add_app(command_template=SHOW), workdir="w", launch_params=BOUND, **threads)
    service.wait([job])
    assert cpus_in(tmp_path / "data/w/job.out") == [{*CORES[0], *CORES[1]}]


def test_a_warm_worker_is_bound_for_one_call(service: FakeService, launch: Launch) -> None:
    launch(cores=2)
    app = service.add_app(hooks=["run"], payload=payload.call_app(1).payload)

    def where() -> tuple[int, set[int]]:
        return os.getpid(), os.sched_getaffinity(0)

    def run(**job: object) -> tuple[int, set[int]]:
        call = payload.dump_call(where, (), {})
        job_id = service.add_job(app, arguments=call, workdir="w", **job)
        service.wait([job_id])
        found: tuple[int, set[int]] = payload.load_result(service.results[job_id])
        return found

    pids, cpus = zip(run(), run(launch_params=BOUND), run(), strict=True)
    assert len(set(pids)) == 1
    assert cpus == (ALLOWED, {CORES[0][0]}, ALLOWED)


def test_ranks_have_a_core_each(service: FakeService, launch: Launch, tmp_path: Path) -> None:
    pytest.importorskip("mpi4py")
    launch(cores=2)
    job = service.add_job(
        service.add_app(command_template=SHOW), workdir="w", ranks_per_node=2, launch_params=BOUND | {"-l": ""}
    )
    service.wait([job])
    assert service.results[job].ok, service.results[job].error
    output = tmp_path / "data/w/job.out"
    assert sorted(map(max, cpus_in(output))) == sorted([CORES[0][0], CORES[1][0]])
    assert sorted(line[:3] for line in output.read_text().splitlines()) == ["[0]", "[1]"]


def test_python_on_ranks_has_a_core_each(service: FakeService, launch: Launch) -> None:
    pytest.importorskip("mpi4py")
    launch(cores=2)
    app = service.add_app(hooks=["run"], payload=payload.call_app(1).payload)

    def where() -> list[set[int]] | None:
        from mpi4py import MPI

        everywhere: list[set[int]] | None = MPI.COMM_WORLD.gather(os.sched_getaffinity(0))
        return everywhere

    job = service.add_job(app, arguments=payload.dump_call(where, (), {}), ranks_per_node=2, launch_params=BOUND)
    service.wait([job])
    assert payload.load_result(service.results[job]) == [{CORES[0][0]}, {CORES[1][0]}]


def test_cores_that_are_only_in_the_settings(service: FakeService, launch: Launch) -> None:
    launch(cores=100_000)
    job = service.add_job(service.add_app(command_template="true"), launch_params=BOUND)
    service.wait([job])
    assert "settings.yml speaks of 100000 cores and this machine has fewer" in service.results[job].error
