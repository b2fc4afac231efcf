from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from balsam_exec.api import Client, Job
from balsam_exec.embedded import Deployment
from tests.support.processes import wait_until


class Bench:
    """A deployment with a running allocation, and what one asks of its jobs."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.data = deployment.home / "site/data"
        self._client = Client(deployment.service())
        self.start_allocation()

    def start_allocation(self) -> None:
        self._allocation = self._client.BatchJob.objects.create(
            site_id=self.deployment.site_id, num_nodes=1, wall_time_min=60, idle_ttl_sec=600
        )

    def end_allocation(self) -> None:
        """As the end of its wall time would: what runs is RUN_TIMEOUT."""
        self._allocation.cancel()
        self._allocation.wait(60)

    def close(self) -> None:
        self._client.service.close()

    def log(self, job: Job) -> str:
        """What the job's hooks have printed."""
        return self.log_of(job.workdir)

    def log_of(self, workdir: str) -> str:
        return (self.data / workdir / "balsam.log").read_text()

    def output(self, job: Job) -> str:
        return (self.data / job.workdir / "job.out").read_text()

    def wait_for_file(self, path: str) -> Path:
        found = self.data / path
        wait_until(found.exists, 30, str(found))
        return found

    def wait_for_text(self, path: str) -> str:
        """What is in a file, once anything is."""
        found = self.wait_for_file(path)
        wait_until(lambda: found.read_text() != "", 10, f"anything in {found}")
        return found.read_text()

    def events(self, job: Job) -> list[tuple[str, dict[str, Any]]]:
        """(state, data) of each state the job came to."""
        return [(event.to_state, event.data) for event in self._client.service.events(job_id=job.id).results]

    def states(self, job: Job) -> list[str]:
        return [state for state, _ in self.events(job)]

    def failure(self, job: Job) -> dict[str, Any]:
        """Wait until it has FAILED; what the event says."""
        Job.objects.wait([job], timeout=60)
        state, data = self.events(job)[-1]
        assert state == "FAILED", self.events(job)
        return data


@pytest.fixture(scope="module")
def module_bench(module_deployment: Deployment) -> Iterator[Bench]:
    bench = Bench(module_deployment)
    yield bench
    bench.close()


@pytest.fixture
def bench(deployment: Deployment, module_bench: Bench) -> Bench:
    return module_bench
