"""Launchers on every node of a real Slurm's allocation, and MPI jobs over several of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from balsam_exec.model.apps import AppSpec
from balsam_exec.model.jobs import JobSpec
from balsam_exec.model.states import BatchJobState, JobState
from tests.site.test_slurm import SlurmSite
from tests.support.processes import wait_until
from tests.support.services import LiveService
from tests.support.slurm import SlurmCluster

pytestmark = pytest.mark.timeout(180)

#: Writes which node it is on, and waits until as many jobs as it is told are running.
TOGETHER = """\
from pathlib import Path
import os, sys, time
here = Path(os.environ.get("SLURMD_NODENAME", "?"))
"""


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

    def app(self, command: str, **fields: Any) -> int:
        spec = AppSpec(site_id=self.record.id, name=f"app{abs(hash(command))}", command_template=command, **fields)
        return self.service.put_app(spec).id

    def submit(self, command: str, count: int = 1, **fields: Any) -> list[int]:
        app = self.app(command)
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

    @property
    def launchers(self) -> str:
        return "\n".join(log.read_text() for log in self.site.log.glob("batch-job-*.log"))

    def output(self, job: int) -> str:
        return (self.site.data / self.service.job(job).workdir / "job.out").read_text()


@pytest.fixture
def cluster(
    slurm: SlurmCluster, start_service: Callable[[str], LiveService], sqlite_url: str, tmp_path: Path
) -> Iterator[Cluster]:
    bench = Cluster(start_service(sqlite_url), tmp_path / "site", slurm)
    yield bench
    bench.close()


def test_a_launcher_on_each_node(cluster: Cluster) -> None:
    """Four jobs that each have a node for themselves run at once on four nodes, under four sessions."""
    go = cluster.site.path / "go"
    jobs = cluster.submit(f"echo $SLURMD_NODENAME; while [ ! -e {go} ]; do sleep 0.02; done", 4)
    cluster.agent()
    allocation = cluster.request(4, job_mode="serial", idle_ttl_sec=0)
    cluster.wait(jobs, JobState.RUNNING)
    assert len(cluster.service.sessions(site_id=[cluster.record.id]).results) == 4
    cluster.go()
    cluster.wait(jobs, JobState.JOB_FINISHED)
    ended = cluster.wait_state(allocation, BatchJobState.FINISHED)
    assert ended.status_info["exit_code"] == 0, cluster.launchers
    assert sorted(map(cluster.output, jobs)) == [f"{node}\n" for node in cluster.cluster.nodes]


def test_ranks_on_several_nodes_by_srun(cluster: Cluster) -> None:
    cluster.set(mpi_launcher="srun")
    go = cluster.site.path / "go"
    jobs = cluster.submit(
        f"echo $SLURMD_NODENAME; while [ ! -e {go} ]; do sleep 0.02; done", 2, num_nodes=2, ranks_per_node=2
    )
    cluster.agent()
    allocation = cluster.request(4, idle_ttl_sec=0)
    cluster.wait(jobs, JobState.RUNNING)
    cluster.go()
    cluster.wait(jobs, JobState.JOB_FINISHED)
    cluster.wait_state(allocation, BatchJobState.FINISHED)
    nodes = [node for node in cluster.cluster.nodes for _ in range(2)]
    assert sorted(line for job in jobs for line in cluster.output(job).splitlines() if "srun" not in line) == nodes
