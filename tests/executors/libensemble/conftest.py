"""An executor on a deployment, with an allocation in which its tasks run."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from libensemble.executors.executor import Executor

from balsam_exec.api import ApplicationDefinition
from balsam_exec.embedded import Deployment
from balsam_exec.executors import BalsamExecutor
from balsam_exec.model.batch_jobs import BatchJobPatch, BatchJobSpec
from balsam_exec.model.states import BatchJobState


class Greet(ApplicationDefinition):
    """Says hello, and complains."""

    site = "local"
    command_template = "echo hello {{ name }}; echo complaint >&2; exit {{ code }}"
    parameters = {"code": {"required": False, "default": "0"}}


@pytest.fixture(scope="module")
def allocation(module_deployment: Deployment) -> Iterator[int]:
    """An allocation of the site, as long as the tests of the module run; its id."""
    service = module_deployment.service()
    spec = BatchJobSpec(site_id=module_deployment.site_id, num_nodes=1, wall_time_min=60, idle_ttl_sec=3600)
    batch_job = service.create_batch_job(spec)
    yield batch_job.id
    service.patch_batch_job(batch_job.id, BatchJobPatch(state=BatchJobState.PENDING_DELETION))


@pytest.fixture
def executor(deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BalsamExecutor]:
    """In a directory of its own, with some apps, under a workflow of its own; without an allocation."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Executor, "executor", None)
    executor = BalsamExecutor(f"workflow-{uuid.uuid4().hex[:8]}")
    executor.register_app(Greet, app_name="greet", calc_type="sim")
    executor.register_app(full_path="/bin/sh", app_name="sh")
    executor.register_app("/bin/echo")
    executor.register_app(full_path="/bin/sleep", calc_type="gen")
    yield executor
    executor._here.engine.close()
