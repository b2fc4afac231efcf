"""A site on Slurm: a real service, agent and Slurm, and launchers where they matter."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from balsam_exec.model.apps import AppSpec
from balsam_exec.model.batch_jobs import BatchJobPatch, BatchJobRecord, BatchJobSpec
from balsam_exec.model.errors import Conflict
from balsam_exec.model.jobs import JobSpec
from balsam_exec.model.states import BatchJobState, JobState
from tests.site.conftest import SiteBench
from tests.support.processes import wait_until
from tests.support.services import LiveService
from tests.support.slurm import SlurmCluster

QUEUED, RUNNING, FINISHED = BatchJobState.QUEUED, BatchJobState.RUNNING, BatchJobState.FINISHED

STAND_IN = "#!/bin/bash\n{{ directives }}\necho allocation {{ job.id }} on $SLURM_JOB_NUM_NODES\n%s\n"
#: Until the file `go` is in the site's directory.
WAITS = "while [ ! -e go ]; do sleep 0.02; done"


class SlurmSite(SiteBench):
    """Its allocations run the script of the last `use`."""

    def __init__(self, live: LiveService, directory: Path, cluster: SlurmCluster) -> None:
        super().__init__(live, directory)
        self.cluster = cluster
        text = self.site.settings_file.read_text().replace("scheduler: local", "scheduler: slurm")
        text = text.replace("cores: null", "cores: 8")
        self.site.settings_file.write_text(re.sub("scheduler_poll_sec: .*", "scheduler_poll_sec: 0.1", text))
        self.use(WAITS)

    def use(self, script: str) -> None:
        self.site.job_template.write_text(STAND_IN % script)

    def use_launcher(self) -> None:
        self.site.job_template.unlink()
        self.site.create("bench")

    def request(self, num_nodes: int = 1, **fields: object) -> BatchJobRecord:
        spec = {"site_id": self.record.id, "num_nodes": num_nodes, "wall_time_min": 5, **fields}
        return self.service.create_batch_job(BatchJobSpec.model_validate(spec))

    def cancel(self, job: BatchJobRecord) -> None:
        self.service.patch_batch_job(job.id, BatchJobPatch(state=BatchJobState.PENDING_DELETION))

    def go(self) -> None:
        (self.site.path / "go").touch()


@pytest.fixture
def slurm_site(at_slurm: Callable[..., SlurmSite]) -> SlurmSite:
    return at_slurm(SlurmSite)


def test_jobs_run_in_an_allocation_of_slurm(slurm_site: SlurmSite) -> None:
    slurm_site.use_launcher()
    service = slurm_site.service
    app = service.put_app(
        AppSpec(site_id=slurm_site.record.id, name="node", command_template="echo $SLURMD_NODENAME $SLURM_JOB_ID")
    )
    jobs = service.create_jobs([JobSpec(app_id=app.id, workdir=f"job/{n}") for n in range(4)])
    slurm_site.agent()
    allocation = slurm_site.request(idle_ttl_sec=0)
    ended = slurm_site.wait_state(allocation, FINISHED, timeout=60)
    assert ended.status_info["exit_code"] == 0, slurm_site.logged(allocation)
    assert [service.job(job.id).state for job in jobs] == [JobState.JOB_FINISHED] * 4
    outputs = {(slurm_site.site.data / f"job/{n}/job.out").read_text().split()[1] for n in range(4)}
    assert outputs == {ended.scheduler_id}


def test_states_as_slurm_has_them(slurm_site: SlurmSite) -> None:
    slurm_site.agent()
    first = slurm_site.wait_state(slurm_site.request(num_nodes=4), RUNNING)
    second = slurm_site.wait_state(slurm_site.request(num_nodes=4), QUEUED)
    wait_until(
        lambda: slurm_site.service.batch_job(second.id).status_info == {"info": "Resources"}, 20, "the reason to wait"
    )
    slurm_site.go()
    ended = slurm_site.wait_state(first, FINISHED)
    assert ended.status_info == {"info": "COMPLETED: exit code 0", "exit_code": 0}
    assert slurm_site.logged(first) == [f"allocation {first.id} on 4"]
    slurm_site.wait_state(second, FINISHED)


def test_cancelled_while_it_waits_and_while_it_runs(slurm_site: SlurmSite) -> None:
    slurm_site.agent()
    running = slurm_site.wait_state(slurm_site.request(num_nodes=4), RUNNING)
    waiting = slurm_site.wait_state(slurm_site.request(num_nodes=4), QUEUED)
    slurm_site.cancel(waiting)
    ended = slurm_site.wait_state(waiting, FINISHED)
    assert ended.status_info == {"info": "CANCELLED: it was cancelled", "cancelled": True}
    assert ended.start_time is None
    slurm_site.cancel(running)
    assert slurm_site.wait_state(running, FINISHED).status_info["cancelled"] is True
    assert slurm_site.cluster.node_states() == ["idle"] * 4
    assert slurm_site.logged(waiting) == []


@pytest.mark.parametrize("how", ["by its owner", "at Slurm", "with its node"])
def test_an_allocation_that_is_lost_gives_its_jobs_back(slurm_site: SlurmSite, how: str) -> None:
    slurm_site.use_launcher()
    service = slurm_site.service
    app = service.put_app(AppSpec(site_id=slurm_site.record.id, name="sleep", command_template="sleep 300"))
    (job,) = service.create_jobs([JobSpec(app_id=app.id, workdir="job")])
    slurm_site.agent()
    allocation = slurm_site.request()
    wait_until(lambda: service.job(job.id).state is JobState.RUNNING, 60, "the job to run")
    scheduler_id = slurm_site.wait_state(allocation, RUNNING).scheduler_id
    assert scheduler_id
    if how == "by its owner":
        slurm_site.cancel(allocation)
    elif how == "at Slurm":
        slurm_site.cluster.run("scancel", scheduler_id)
    else:
        node = slurm_site.cluster.run("squeue", "-h", "-o", "%N", "-j", scheduler_id).strip()
        slurm_site.cluster.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    slurm_site.wait_state(allocation, FINISHED, timeout=60)
    assert service.job(job.id).state is JobState.RESTART_READY


def test_changed_while_it_waits(slurm_site: SlurmSite) -> None:
    service = slurm_site.service
    agent = slurm_site.agent()
    blocker = slurm_site.wait_state(slurm_site.request(num_nodes=4), RUNNING)
    waiting = slurm_site.wait_state(slurm_site.request(num_nodes=2), QUEUED)
    assert waiting.submitted == waiting.request

    def change(**fields: object) -> BatchJobRecord:
        return service.patch_batch_job(waiting.id, BatchJobPatch.model_validate(fields))

    def wait_told(found: Callable[[BatchJobRecord], bool]) -> BatchJobRecord:
        wait_until(lambda: found(service.batch_job(waiting.id)), 20, f"news, not {service.batch_job(waiting.id)}")
        return service.batch_job(waiting.id)

    change(num_nodes=3, wall_time_min=4, filter_tags={"a": "b"})
    wait_told(lambda job: job.submitted == job.request and job.num_nodes == 3)
    shown = slurm_site.cluster.run("squeue", "-h", "-o", "%D %l %P", "-j", waiting.scheduler_id or "")
    assert shown.split() == ["3", "4:00", "debug"]
    change(queue="no-such")
    refused = wait_told(lambda job: "refused" in job.status_info)
    assert (refused.queue, refused.num_nodes, refused.filter_tags) == ("local", 3, {"a": "b"})
    assert "queue stays local, not no-such: scontrol: Invalid partition name" in refused.status_info["refused"]
    agent.kill()
    change(num_nodes=2)
    slurm_site.cluster.run("scancel", blocker.scheduler_id or "")
    wait_until(lambda: bool(slurm_site.logged(waiting)), 20, "it to start")
    slurm_site.agent()
    started = slurm_site.wait_state(waiting, RUNNING)
    assert started.num_nodes == 3
    words = "num_nodes stays 3, not 2: it started before that could be changed"
    assert started.status_info["refused"] == words
    with pytest.raises(Conflict, match="it is running"):
        change(num_nodes=2)
    slurm_site.go()
    assert slurm_site.wait_state(waiting, FINISHED).status_info["refused"] == words
    assert slurm_site.logged(waiting) == [f"allocation {waiting.id} on 3"]


def test_what_slurm_refuses_is_shown(slurm_site: SlurmSite) -> None:
    slurm_site.agent()
    job = slurm_site.wait_state(slurm_site.request(queue="no-such"), BatchJobState.SUBMIT_FAILED)
    assert "Invalid partition name specified" in job.status_info["error"]
    slurm_site.wait_state(slurm_site.request(optional_params={"begin": "now+1hour"}), QUEUED)


def test_a_controller_that_goes_and_comes_back(slurm_site: SlurmSite) -> None:
    """Nothing changes for what runs; what is asked for meanwhile waits and says why."""
    slurm_site.agent()
    running = slurm_site.wait_state(slurm_site.request(), RUNNING)
    slurm_site.cluster.stop_controller()
    try:
        asked = slurm_site.request()
        wait_until(lambda: slurm_site.service.batch_job(asked.id).status_info != {}, 40, "the trouble to be told")
        told = slurm_site.service.batch_job(asked.id)
        assert told.state is BatchJobState.PENDING_SUBMISSION
        assert "contact slurm controller" in told.status_info["error"]
        assert slurm_site.service.batch_job(running.id) == running
    finally:
        slurm_site.cluster.start_controller()
    assert slurm_site.wait_state(asked, RUNNING, timeout=60).status_info == {}
    assert slurm_site.service.batch_job(running.id) == running
    slurm_site.go()
    slurm_site.wait_state(running, FINISHED)
    slurm_site.wait_state(asked, FINISHED)


def test_killed_between_submitting_and_recording(slurm_site: SlurmSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """The id is printed when the agent that asked for it is dead: the next one finds it."""
    directory = slurm_site.site.path
    sbatch = directory / "bin/sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(
        f'#!/bin/bash\ntouch {directory}/called\nid=$({shutil.which("sbatch")} "$@")\n{WAITS}\necho $id\n'
    )
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:{os.environ['PATH']}")
    slurm_site.use("true")
    agent = slurm_site.agent()
    job = slurm_site.request()
    wait_until((directory / "called").exists, 20, "sbatch to be called")
    agent.kill()
    slurm_site.agent()
    assert slurm_site.service.batch_job(job.id).state is BatchJobState.PENDING_SUBMISSION
    slurm_site.go()
    slurm_site.wait_state(job, FINISHED, timeout=40)
    assert slurm_site.logged(job) == [f"allocation {job.id} on 1"]
