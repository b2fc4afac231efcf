"""Deployments of one's own, in temporary homes, and what one does to their parts."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from balsam_exec.embedded import Deployment
from balsam_exec.embedded.deployment import stop
from balsam_exec.embedded.layout import Layout, read_json, recorded
from balsam_exec.model.batch_jobs import BatchJobRecord, BatchJobSpec
from balsam_exec.model.states import BatchJobState
from balsam_exec.platform.processes import Process
from tests.support.processes import wait_until


@pytest.fixture
def home(balsam_home: Path) -> Iterator[Path]:
    """A home whose deployment, if there is one, is ended."""
    yield balsam_home
    stop(balsam_home)


def process_of(home: Path, part: str) -> Process:
    found = recorded(read_json(Layout(home).state_file), part)
    assert found is not None, f"the state file has no {part}"
    return found


def processes_of(home: Path) -> list[Process]:
    return [process_of(home, part) for part in ("supervisor", "service", "agent")]


def kill(home: Path, part: str) -> Process:
    """kill -9 of a part, which is gone when this returns."""
    victim = process_of(home, part)
    assert victim.send(signal.SIGKILL)
    assert victim.wait(10)
    return victim


def wait_other(home: Path, part: str, former: Process) -> Process:
    """The process that takes the place of a former one."""

    def replaced() -> bool:
        found = recorded(read_json(Layout(home).state_file), part)
        return found is not None and found != former and found.alive

    wait_until(replaced, 20, f"another {part}")
    return process_of(home, part)


def allocation(deployment: Deployment) -> tuple[BatchJobRecord, Process]:
    """A running allocation with an idle launcher, and the process that leads it."""
    service = deployment.service()
    spec = BatchJobSpec(site_id=deployment.site_id, num_nodes=1, wall_time_min=30, idle_ttl_sec=600)
    requested = service.create_batch_job(spec)
    wait_until(lambda: bool(service.sessions(batch_job_id=requested.id).results), 30, "the launcher to have a session")
    job = service.batch_job(requested.id)
    service.close()
    assert job.state is BatchJobState.RUNNING
    assert job.scheduler_id is not None
    pid, start = job.scheduler_id.partition("@")[0].split(".")
    return job, Process(int(pid), int(start))
