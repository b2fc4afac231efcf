"""Launchers on every node of a real Slurm's allocation, and MPI jobs over several of them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from balsam_exec.apps import payload
from balsam_exec.model.apps import AppSpec
from balsam_exec.model.batch_jobs import BatchJobRecord
from balsam_exec.model.jobs import JobSpec
from balsam_exec.model.states import TERMINAL, BatchJobState, JobState
from tests.launcher.test_process import proper_of
from tests.site.test_slurm import SlurmSite
from tests.support.processes import wait_gone, wait_until
from tests.support.services import LiveService
from tests.support.slurm import SlurmCluster

pytestmark = pytest.mark.timeout(180)

LAUNCHERS = pytest.mark.parametrize("launcher", ["srun", "mpiexec"])


class Cluster(SlurmSite):
    """A site whose allocations run launchers."""

    def __init__(self, live: LiveService, directory: Path, cluster: SlurmCluster) -> None:
        super().__init__(live, directory, cluster)
        self.use_launcher()

    def set(self, **settings: object) -> None:
        text = self.site.settings_file.read_text()
        for name, value in settings.items():
            text = re.sub(f"^{name}:.*", f"{name}: {value}", text, flags=re.MULTILINE)
        self.site.settings_file.write_text(text)

    def submit(self, command: str, count: int = 1, **fields: Any) -> list[int]:
        spec = AppSpec(site_id=self.record.id, name=f"app{self.service.count_jobs()}", command_template=command)
        return self._create(self.service.put_app(spec).id, count, **fields)

    def call(self, function: Callable[..., Any], count: int = 1, **fields: Any) -> list[int]:
        app = self.service.put_app(payload.call_app(self.record.id)).id
        return self._create(app, count, arguments=payload.dump_call(function, (), {}), **fields)

    def _create(self, app: int, count: int, **fields: Any) -> list[int]:
        first = self.service.count_jobs()
        specs = [JobSpec(app_id=app, workdir=f"job/{first + n}", **fields) for n in range(count)]
        return [job.id for job in self.service.create_jobs(specs)]

    def wait(self, jobs: list[int], *states: JobState, timeout: float = 60) -> None:
        def there() -> bool:
            return self.service.count_jobs(id=jobs, state=list(states)) == len(jobs)

        try:
            wait_until(there, timeout, f"the jobs to be {states}")
        except TimeoutError as error:
            raise AssertionError(f"{error}: {[self.service.job(job) for job in jobs]}\n{self.launchers}") from error

    def result(self, job: int) -> Any:
        self.wait([job], *TERMINAL)
        return payload.load_result(self.service.results([job])[job])

    @property
    def launchers(self) -> str:
        """What they have logged."""
        return "\n".join(log.read_text() for log in self.site.log.glob("batch-job-*.log"))

    def output(self, job: int) -> list[str]:
        """What its ranks have printed, sorted, but for what srun has to say of these nodes."""
        lines = (self.site.data / self.service.job(job).workdir / "job.out").read_text().splitlines()
        return sorted(line for line in lines if not line.startswith("srun: "))

    def until(self, word: str, command: str) -> str:
        """This, and then waiting for that word."""
        return f"{command}; while [ ! -e {self.site.path}/{word} ]; do sleep 0.02; done"

    def scancel(self, allocation: BatchJobRecord) -> None:
        scheduler_id = self.service.batch_job(allocation.id).scheduler_id
        assert scheduler_id
        self.cluster.run("scancel", scheduler_id)

    def run(self, jobs: list[int], word: str) -> None:
        """Have all of them run at once, and then end with the word."""
        self.wait(jobs, JobState.RUNNING)
        (self.site.path / word).touch()
        self.wait(jobs, JobState.JOB_FINISHED)


@pytest.fixture
def cluster(at_slurm: Callable[..., Cluster]) -> Cluster:
    return at_slurm(Cluster)


def test_a_launcher_on_each_node(cluster: Cluster) -> None:
    """Four jobs that each have a node for themselves run at once on four nodes, under four sessions; what is cut short
    by scancel runs again."""
    jobs = cluster.submit(cluster.until("go", "echo $SLURMD_NODENAME"), 4)
    cluster.agent()
    allocation = cluster.request(4, job_mode="serial")
    cluster.run(jobs, "go")
    assert len(cluster.service.sessions(site_id=[cluster.record.id]).results) == 4
    assert sorted(map(cluster.output, jobs)) == [[node] for node in cluster.cluster.nodes]

    long = cluster.submit("exec sleep 300", 4)
    cluster.wait(long, JobState.RUNNING)
    cluster.scancel(allocation)
    cluster.wait(long, JobState.RESTART_READY)
    cluster.wait_state(allocation, BatchJobState.FINISHED)
    assert cluster.service.sessions(site_id=[cluster.record.id]).results == []


def test_serial_launchers_drain(cluster: Cluster) -> None:
    """Cancelled by their owner, jobs have their grace on all nodes."""
    saves = "trap 'sleep 0.2; echo saved; exit 0' TERM; touch ready; while :; do sleep 0.02; done"
    jobs = cluster.submit(saves, 3)
    cluster.set(cancel_grace_sec=20)
    cluster.agent()
    allocation = cluster.request(3, job_mode="serial")
    wait_until(lambda: len(list(cluster.site.data.glob("job/*/ready"))) == 3, 60, "the jobs to be ready")
    cluster.cancel(allocation)
    cluster.wait(jobs, JobState.RESTART_READY)
    cluster.wait_state(allocation, BatchJobState.FINISHED)
    assert all("saved" in cluster.output(job) for job in jobs)


@LAUNCHERS
def test_jobs_over_the_nodes_of_an_mpi_allocation(cluster: Cluster, launcher: str) -> None:
    cluster.set(mpi_launcher=launcher, gpus=4)
    nodes = cluster.cluster.nodes
    halves = [[node for node in pair for _ in range(2)] for pair in (nodes[:2], nodes[2:])]
    show = "echo $SLURMD_NODENAME ${CUDA_VISIBLE_DEVICES:-none}"
    wide = cluster.submit(cluster.until("one", show), 2, num_nodes=2, ranks_per_node=2, gpus_per_rank=2)
    cluster.agent()
    allocation = cluster.request(4)
    cluster.run(wide, "one")
    assert sorted(map(cluster.output, wide)) == [[f"{node} 0,1,2,3" for node in half] for half in halves]

    shared = {"node_packing_count": 4, "gpus_per_rank": 1}
    first = cluster.submit(cluster.until("two", show), **shared)
    cluster.wait(first, JobState.RUNNING)
    second = cluster.submit(cluster.until("two", show), num_nodes=4, **shared)
    cluster.run(first + second, "two")
    assert cluster.output(second[0]) == [f"{nodes[0]} 1", *(f"{node} 0" for node in nodes[1:])]

    alone = cluster.submit(cluster.until("three", show), 4)
    cluster.run(alone, "three")
    assert sorted(map(cluster.output, alone)) == [[f"{node} none"] for node in nodes]

    def where() -> str:
        return os.environ["SLURMD_NODENAME"]

    def world() -> Any:
        from mpi4py import MPI

        return MPI.COMM_WORLD.gather((MPI.COMM_WORLD.rank, os.environ["SLURMD_NODENAME"]))

    pmi = {"--mpi": "pmi2"} if launcher == "srun" else {}
    (together,) = cluster.call(world, num_nodes=2, ranks_per_node=2, launch_params=pmi)
    cluster.wait([together], JobState.JOB_FINISHED)
    calls = cluster.call(where, 3)
    assert cluster.result(together) in [list(enumerate(half)) for half in halves]
    assert {cluster.result(job) for job in calls} <= set(nodes)

    long = cluster.submit("exec sleep 300", 2, num_nodes=2)
    cluster.wait(long, JobState.RUNNING)
    cluster.scancel(allocation)
    cluster.wait(long, JobState.RESTART_READY)
    cluster.wait_state(allocation, BatchJobState.FINISHED)
    assert not list(cluster.site.exchange.iterdir())


@LAUNCHERS
def test_a_kill_reaches_all_nodes(cluster: Cluster, launcher: str) -> None:
    """Ranks have their grace wherever they are, and those that do not listen are gone when the job is said to be."""
    cluster.set(mpi_launcher=launcher)
    pid = "echo $$ > pid-$SLURMD_NODENAME"
    saves = f"trap 'sleep 0.2; echo saved on $SLURMD_NODENAME; exit 0' TERM; {pid}; while :; do sleep 0.02; done"
    deaf = f"trap '' TERM; {pid}; while :; do sleep 0.02; done"
    jobs = [*cluster.submit(saves, num_nodes=2), *cluster.submit(deaf, num_nodes=2)]
    cluster.agent()
    cluster.request(4)

    def pids() -> list[int]:
        return [int(text) for path in cluster.site.data.glob("job/*/pid-*") if (text := path.read_text())]

    wait_until(lambda: len(pids()) == 4, 60, "the ranks to run")
    cluster.service.kill_jobs(jobs)
    cluster.wait(jobs, JobState.USER_KILLED)
    assert all(wait_gone(pid, 0) for pid in pids())
    said = [line for line in cluster.output(jobs[0]) if "saved" in line]
    assert said == [f"saved on {node}" for node in cluster.cluster.nodes[:2]]


def test_partitions(cluster: Cluster) -> None:
    """Each has its own mode, nodes and tags."""
    cluster.set(mpi_launcher="srun")
    show = cluster.until("go", "echo $SLURMD_NODENAME")
    small = cluster.submit(show, 2, tags={"size": "small"})
    large = cluster.submit(show, 1, num_nodes=2, tags={"size": "large"})
    other = cluster.submit(show, 1, tags={"size": "other"})
    cluster.agent()
    partitions = [
        {"job_mode": "mpi", "num_nodes": 2, "filter_tags": {"size": "large"}},
        {"job_mode": "serial", "num_nodes": 2, "filter_tags": {"size": "small"}},
    ]
    allocation = cluster.request(4, partitions=partitions)
    cluster.run(small + large, "go")
    nodes = cluster.cluster.nodes
    assert cluster.output(large[0]) == nodes[:2]
    assert sorted(map(cluster.output, small)) == [[node] for node in nodes[2:]]
    assert cluster.service.job(other[0]).state is JobState.PREPROCESSED
    cluster.cancel(allocation)
    cluster.wait_state(allocation, BatchJobState.FINISHED)


def test_nothing_is_left_of_a_crew_whose_launcher_is_killed(cluster: Cluster) -> None:
    """On other nodes neither, where Slurm would let it run until the allocation ends; the other crew goes on."""
    cluster.set(mpi_launcher="srun")
    cluster.submit("echo $$ > pid-$SLURMD_NODENAME; sleep 300", num_nodes=2, tags={"crew": "mpi"})
    others = cluster.submit("sleep 300", tags={"crew": "serial"})
    cluster.agent()
    partitions = [{"job_mode": mode, "num_nodes": 2, "filter_tags": {"crew": mode}} for mode in ("mpi", "serial")]
    cluster.request(4, partitions=partitions)

    def pids() -> list[int]:
        return [int(text) for path in cluster.site.data.glob("job/0/pid-*") if (text := path.read_text())]

    wait_until(lambda: len(pids()) == 2, 60, "the ranks to run")
    cluster.wait(others, JobState.RUNNING)
    launchers = {int(pid) for pid in re.findall(r"crew 0, mpi .*: process (\d+)", cluster.launchers)}
    for pid in launchers:
        proper_of(psutil.Process(pid)).kill()
    assert all(wait_gone(pid, 10) for pid in pids())
    assert cluster.service.job(others[0]).state is JobState.RUNNING
    wait_until(lambda: "crew 0 ended with code 137" in cluster.launchers, 20, "the end of the crew")
