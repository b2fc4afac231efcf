"""Killing jobs of a whole deployment: nothing is left of them when they are USER_KILLED, whoever dies meanwhile."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from balsam_exec import ApplicationDefinition, BatchJob, Job
from balsam_exec.embedded import Deployment
from balsam_exec.model.errors import DoesNotExist, InvalidRequest, JobCancelled
from balsam_exec.model.states import JobState
from tests.support.processes import wait_gone, wait_until

pytestmark = pytest.mark.timeout(240)
S = JobState


@pytest.fixture
def allocation(deployment: Deployment) -> Iterator[BatchJob]:
    """A running allocation of this test's own."""
    batch_job = BatchJob(num_nodes=1, wall_time_min=10, site_id="local")
    batch_job.save()
    yield batch_job
    batch_job.cancel()
    batch_job.wait(60)


class Told:
    """What a job's processes have told of themselves, a pid a line."""

    def __init__(self, deployment: Deployment, job: Job) -> None:
        self._job = job
        self._output = job.resolve_workdir(deployment.home / "site/data") / "job.out"

    def pids(self, count: int = 1) -> list[int]:
        """Once there are so many, and the service knows that the job runs."""

        def numbers() -> list[int]:
            return [int(line) for line in self._output.read_text().split()] if self._output.exists() else []

        wait_until(lambda: len(numbers()) >= count, 60, f"{count} pids in {self._output}")
        wait_until(lambda: self._job.done() or self._job.state is S.RUNNING, 20, "the job to run")
        return numbers()


def submit(command: str, workdir: str, **fields: object) -> Job:
    class Command(ApplicationDefinition):
        site = "local"
        command_template = "bash -c {{ command }}"

    job = Job(workdir=workdir, app_id=Command, parameters={"command": command}, node_packing_count=4, **fields)
    job.save()
    return job


def killed(job: Job) -> bool:
    """Whether its future says that it was."""
    with pytest.raises(JobCancelled, match="killed by its owner"):
        job.result(timeout=60)
    return job.state is S.USER_KILLED


DEAF = 'trap "" TERM; echo $$; while :; do sleep 0.1; done'


def test_a_shell_that_will_not_end_and_what_left_its_session(deployment: Deployment, allocation: BatchJob) -> None:
    """One with its parent in the job, one, a daemon, without."""
    script = f"trap '' TERM; echo $$; setsid -f bash -c '{DEAF}'; setsid bash -c '{DEAF}' & sleep 1000; sleep 1000"
    job = submit(script, "deaf")
    pids = Told(deployment, job).pids(3)
    job.kill()
    job.kill()
    assert killed(job)
    assert all(wait_gone(pid, 0) for pid in pids)
    assert job.return_code == -signal.SIGKILL


def test_a_call_that_loops(deployment: Deployment, allocation: BatchJob) -> None:
    class Loop(ApplicationDefinition):
        site = "local"

        def run(self) -> None:
            print(os.getpid(), flush=True)
            while True:
                pass

    job = Loop.submit(workdir="loop", node_packing_count=4)
    [pid] = Told(deployment, job).pids()
    job.kill()
    assert killed(job)
    assert wait_gone(pid, 0)


def test_mpi_ranks(deployment: Deployment, allocation: BatchJob, tmp_path: Path) -> None:
    """Hydra's ranks live in sessions of their own, and these do not listen to SIGTERM."""
    pytest.importorskip("mpi4py")
    program = tmp_path / "ranks.py"
    program.write_text(
        textwrap.dedent(
            """
            import os, signal, time
            from mpi4py import MPI
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            MPI.COMM_WORLD.Barrier()
            os.write(1, b"%d\\n" % os.getpid())
            time.sleep(1000)
            """
        )
    )
    job = submit(f"{sys.executable} {program}", "ranks", ranks_per_node=2)
    pids = Told(deployment, job).pids(2)
    tree = [p.pid for pid in pids for p in (psutil.Process(pid), psutil.Process(pid).parent()) if p is not None]
    assert len(set(pids)) == 2
    job.kill()
    assert killed(job)
    assert all(wait_gone(pid, 0) for pid in tree)


def test_what_has_not_started_never_does(deployment: Deployment) -> None:
    """With no allocation; some by their tag, one by itself, one by its state."""
    jobs = [submit("echo started", f"never{i}", tags={"kill": "these" if i < 3 else "one"}) for i in range(5)]
    assert Job.objects.filter(tags={"kill": "these"}).kill() == 3
    assert Job.objects.filter(tags={"kill": "these"}).kill() == 0
    jobs[3].kill()
    assert jobs[3].state is S.USER_KILLED
    jobs[4].state = S.USER_KILLED
    jobs[4].save()
    assert all(killed(job) for job in jobs)
    assert not any((deployment.home / "site/data" / job.workdir).exists() for job in jobs)
    with pytest.raises(InvalidRequest, match="at least one filter"):
        Job.objects.all().kill()


def test_setting_the_state_of_what_runs_kills_it(deployment: Deployment, allocation: BatchJob) -> None:
    job = submit("echo $$; exec sleep 1000", "by-state")
    [pid] = Told(deployment, job).pids()
    job.state = S.USER_KILLED
    job.save()
    assert killed(job)
    assert wait_gone(pid, 0)


def test_what_has_ended_stays_as_it_is(deployment: Deployment, allocation: BatchJob) -> None:
    job = submit("true", "ended")
    assert job.result(timeout=60) is None
    job.kill()
    assert job.done()
    assert job.state is S.JOB_FINISHED
    job.delete()
    with pytest.raises(DoesNotExist):
        job.kill()


def launcher(deployment: Deployment) -> psutil.Process:
    """The launcher proper, below its guardians."""
    found = [
        process
        for process in psutil.process_iter(["cmdline", "environ"])
        if "balsam_exec.launcher" in (process.info["cmdline"] or [])
        and (process.info["environ"] or {}).get("BALSAM_HOME") == str(deployment.home)
    ]
    assert len(found) == 3
    return next(p for p in found if not any(child in found for child in p.children()))


def test_a_launcher_that_is_killed_itself(deployment: Deployment, allocation: BatchJob) -> None:
    """It never obeys: the job is killed when its lease ends, and runs nowhere else."""
    job = submit("echo $$; exec sleep 1000", "orphan")
    [pid] = Told(deployment, job).pids()
    victim = launcher(deployment)
    victim.suspend()
    job.kill()
    assert job.done() is False
    victim.kill()
    assert killed(job)
    assert wait_gone(pid, 10)


def test_a_kill_is_confirmed_soon(deployment: Deployment, allocation: BatchJob) -> None:
    """Not a measurement, but no heartbeat's time (15 s) either."""
    job = submit("echo $$; exec sleep 1000", "soon")
    Told(deployment, job).pids()
    start = time.monotonic()
    job.kill()
    assert killed(job)
    assert time.monotonic() - start < 5
