"""A site on Slurm: a real service, agent and Slurm, and launchers where they matter."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from balsam_exec.model.apps import AppSpec
from balsam_exec.model.batch_jobs import BatchJobPatch, BatchJobRecord, BatchJobSpec
from balsam_exec.model.jobs import JobSpec
from balsam_exec.model.states import BatchJobState, JobState
from tests.site.conftest import SiteBench
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
def slurm_site(
    slurm: SlurmCluster, start_service: Callable[[str], LiveService], sqlite_url: str, tmp_path: Path
) -> Iterator[SlurmSite]:
    bench = SlurmSite(start_service(sqlite_url), tmp_path / "site", slurm)
    yield bench
    bench.close()


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
