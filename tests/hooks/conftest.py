from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from balsam_exec.api import BatchJob, Client, Job
from balsam_exec.embedded import Deployment


class Bench:
    """A deployment with a running allocation, and what one asks of its jobs."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.data = deployment.home / "site/data"

    def log(self, job: Job) -> str:
        """What the job's hooks have printed."""
        return (self.data / job.workdir / "balsam.log").read_text()

    def output(self, job: Job) -> str:
        return (self.data / job.workdir / "job.out").read_text()

    def write(self, workdir: str, name: str, text: str) -> Path:
        path = self.data / workdir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def events(self, job: Job) -> list[tuple[str, dict[str, object]]]:
        """(state, data) of each state the job came to."""
        return [(event.to_state, event.data) for event in self.deployment.service().events(job_id=job.id).results]

    def states(self, job: Job) -> list[str]:
        return [state for state, _ in self.events(job)]


@pytest.fixture(scope="module")
def allocation(module_deployment: Deployment) -> Iterator[BatchJob]:
    client = Client(module_deployment.service())
    yield client.BatchJob.objects.create(
        site_id=module_deployment.site_id, num_nodes=1, wall_time_min=60, idle_ttl_sec=600
    )
    client.service.close()


@pytest.fixture
def bench(deployment: Deployment, allocation: BatchJob) -> Bench:
    return Bench(deployment)
