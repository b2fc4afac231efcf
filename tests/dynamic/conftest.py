from __future__ import annotations

from collections.abc import Iterator

import pytest

from balsam_exec import BatchJob
from balsam_exec.embedded import Deployment
from tests.launcher.conftest import launch, service

__all__ = ["launch", "service"]


@pytest.fixture(scope="module")
def module_allocation(module_deployment: Deployment) -> Iterator[BatchJob]:
    """A running allocation for all tests of a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BALSAM_HOME", str(module_deployment.home))
        batch_job = BatchJob(num_nodes=1, wall_time_min=10, site_id="local", idle_ttl_sec=600)
        batch_job.save()
        yield batch_job
        batch_job.cancel()
        batch_job.wait(60)


@pytest.fixture
def allocation(deployment: Deployment, module_allocation: BatchJob) -> BatchJob:
    """The configured service has a local site, and an allocation runs there."""
    return module_allocation
