"""Allocations as libEnsemble's scripts ask for them."""

from __future__ import annotations

import time

import pytest

from balsam_exec.api import BatchJobState, Client
from balsam_exec.embedded import Deployment
from balsam_exec.executors import BalsamExecutor
from balsam_exec.executors.libensemble import task as task_module
from balsam_exec.model.errors import DoesNotExist
from balsam_exec.model.sites import SiteSpec

DEADLINE = 60


def test_tasks_run_in_an_allocation_with_their_tags(executor: BalsamExecutor, deployment: Deployment) -> None:
    mine = {"run": executor.workflow_name}
    inside = executor.submit("sim", app_args={"name": "inside"}, tags=mine)
    outside = executor.submit("sim", app_args={"name": "outside"})
    allocation = executor.submit_allocation(deployment.site_id, 1, 10, filter_tags=mine)
    assert executor.allocations == [allocation]
    assert (allocation.job_mode, allocation.queue, allocation.project) == ("mpi", "local", "local")
    inside.wait(DEADLINE)
    assert inside.process is not None
    assert inside.process.batch_job_id == allocation.id
    assert not outside.done()
    assert executor.revoke_allocation(allocation)
    assert allocation.wait(DEADLINE) is BatchJobState.FINISHED
    assert executor.revoke_allocation(allocation), "it has ended already"
    outside.kill()


def test_the_site_is_the_executors_or_given_by_name(executor: BalsamExecutor, deployment: Deployment) -> None:
    for allocation in (executor.submit_allocation(), executor.submit_allocation("local", 1, 5, "serial")):
        assert allocation.site_id == deployment.site_id
        assert executor.revoke_allocation(allocation)
    with pytest.raises(DoesNotExist, match="nowhere"):
        executor.submit_allocation("nowhere", 1, 5)


def test_an_allocation_that_no_scheduler_has_seen(
    executor: BalsamExecutor, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []
    monkeypatch.setattr(task_module.log, "warning", lambda message, *args: said.append(message % args))
    site = deployment.service().create_site(SiteSpec(name=f"dead-{executor.workflow_name}"))
    allocation = executor.submit_allocation(site.id, 1, 10)
    started = time.monotonic()
    assert executor.revoke_allocation(allocation, timeout=0.2) is False
    assert 0.2 <= time.monotonic() - started < 10
    assert "no scheduler id" in said[0]
    assert Client(deployment.service()).BatchJob.objects.get(id=allocation.id).state == BatchJobState.PENDING_DELETION
