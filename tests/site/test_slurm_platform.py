"""A site that `balsam site init --platform slurm` has made, as its owner uses it, on a real Slurm."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from balsam_exec.model.apps import AppSpec
from balsam_exec.model.batch_jobs import BatchJobSpec
from balsam_exec.model.jobs import JobSpec
from balsam_exec.model.sites import AgentProcess, SiteRecord
from balsam_exec.model.states import BatchJobState, JobState
from balsam_exec.platform.processes import Process
from tests.cli.conftest import execute
from tests.support.processes import wait_until
from tests.support.services import LiveService
from tests.support.slurm import SlurmCluster


def test_from_init_to_the_end_of_an_allocation_whose_agent_was_killed(
    slurm: SlurmCluster,
    start_service: Callable[[str], LiveService],
    sqlite_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    live = start_service(sqlite_url)
    monkeypatch.setenv("BALSAM_URL", live.url)
    monkeypatch.setenv("BALSAM_TOKEN", live.token)
    path = tmp_path / "cluster"

    def balsam(*arguments: str) -> str:
        done = execute("site", *arguments, str(path), home=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    site = SiteRecord.model_validate_json(balsam("init", "--json", "--platform", "slurm"))
    assert site.name == "cluster"
    with (path / "settings.yml").open("a") as settings:
        settings.write("cores: 8\nscheduler_poll_sec: 0.2\nidle_ttl_sec: 0\n")

    service = live.service
    command = f"while [ ! -e {path}/go ]; do sleep 0.05; done; echo in $SLURM_JOB_ID"
    app = service.put_app(AppSpec(site_id=site.id, name="wait", command_template=command))
    [job] = service.create_jobs([JobSpec(app_id=app.id, workdir="job")])
    allocation = service.create_batch_job(BatchJobSpec(site_id=site.id, num_nodes=1, wall_time_min=5))

    agent = AgentProcess.model_validate(json.loads(balsam("start", "--json")))
    wait_until(lambda: service.job(job.id).state is JobState.RUNNING, 60, "the job to run")
    process = Process(agent.pid, agent.start)
    process.send(signal.SIGKILL)
    assert process.wait(10)
    scheduler_id = service.batch_job(allocation.id).scheduler_id

    (path / "go").touch()
    balsam("start")
    wait_until(lambda: service.batch_job(allocation.id).state is BatchJobState.FINISHED, 60, "the allocation to end")
    ended = service.batch_job(allocation.id)
    assert (ended.scheduler_id, ended.status_info["exit_code"]) == (scheduler_id, 0)
    assert service.job(job.id).state is JobState.JOB_FINISHED
    assert (path / "data/job/job.out").read_text() == f"in {scheduler_id}\n"
    assert "stopped: pid" in balsam("stop")
    assert not service.site(site.id).active
