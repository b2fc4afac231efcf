"""Python apps on several ranks that `srun` starts, in an allocation of a real Slurm."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from balsam_exec.apps import payload
from balsam_exec.model.jobs import JobSpec, Result
from balsam_exec.model.states import TERMINAL, JobState
from tests.site.test_slurm import SlurmSite
from tests.support.processes import wait_gone, wait_until

pytestmark = pytest.mark.timeout(180)


class Ranks:
    """Functions on two ranks at a site that uses srun."""

    def __init__(self, bench: SlurmSite) -> None:
        self.bench = bench
        self.service = bench.service
        self._app = self.service.put_app(payload.call_app(bench.record.id))

    def submit(self, workdir: str, function: Callable[..., Any], **fields: Any) -> int:
        call = payload.dump_call(function, (), {})
        spec = JobSpec(app_id=self._app.id, workdir=workdir, arguments=call, ranks_per_node=2, **fields)
        return self.service.create_jobs([spec])[0].id

    def result(self, job_id: int) -> Result:
        wait_until(lambda: self.service.job(job_id).state in TERMINAL, 90, f"job {job_id} to end")
        return self.service.results([job_id])[job_id]


@pytest.fixture
def ranks(at_slurm: Callable[..., SlurmSite]) -> Ranks:
    bench = at_slurm(SlurmSite)
    settings = bench.site.settings_file.read_text()
    bench.site.settings_file.write_text(settings.replace("mpi_launcher: mpiexec", "mpi_launcher: srun"))
    bench.use_launcher()
    bench.agent()
    bench.request()
    return Ranks(bench)


def test_values_and_failures_of_ranks(ranks: Ranks) -> None:
    def who() -> Any:
        from balsam_exec import current_job

        return current_job().id, os.environ["SLURM_PROCID"], os.environ["SLURM_STEP_NUM_TASKS"]

    def fail_on_one() -> None:
        if os.environ["SLURM_PROCID"] == "1":
            raise ValueError("no water on rank 1")
        time.sleep(600)

    asked, failed = ranks.submit("who", who), ranks.submit("fail", fail_on_one)
    assert payload.load_result(ranks.result(asked)) == (asked, "0", "2")
    result = ranks.result(failed)
    assert result.error.startswith("on rank 1 of 2:\n")
    with pytest.raises(ValueError, match="no water on rank 1"):
        payload.load_result(result)


def test_mpi4py_as_srun_is_told_to_start_it(ranks: Ranks) -> None:
    def world() -> Any:
        from mpi4py import MPI

        return MPI.COMM_WORLD.allreduce(MPI.COMM_WORLD.rank + 1)

    job_id = ranks.submit("mpi", world, launch_params={"--mpi": "pmi2"})
    assert payload.load_result(ranks.result(job_id)) == 3


def test_nothing_is_left_of_the_ranks_of_a_killed_job(ranks: Ranks) -> None:
    def linger() -> None:
        Path(f"pid-{os.environ['SLURM_PROCID']}").write_text(str(os.getpid()))
        time.sleep(600)

    job_id = ranks.submit("killed", linger)
    workdir = ranks.bench.site.data / "killed"
    wait_until(lambda: sum(bool(path.read_text()) for path in workdir.glob("pid-*")) == 2, 60, "two ranks")
    pids = [int(path.read_text()) for path in workdir.glob("pid-*")]
    ranks.service.kill_jobs([job_id])
    ranks.result(job_id)
    assert ranks.service.job(job_id).state is JobState.USER_KILLED
    for pid in pids:
        assert wait_gone(pid, 10)
