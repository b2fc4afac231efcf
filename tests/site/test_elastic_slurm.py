"""The elastic queue on a real Slurm: allocations come, fill a gap before a job that waits, and go."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from balsam_exec.model.apps import AppSpec
from balsam_exec.model.batch_jobs import BatchJobRecord
from balsam_exec.model.jobs import JobSpec
from balsam_exec.model.states import BatchJobState, JobState
from tests.site.test_slurm import SlurmSite
from tests.support.processes import wait_until
from tests.support.services import LiveService
from tests.support.slurm import SlurmCluster


class ElasticSite(SlurmSite):
    """A site on Slurm with an elastic queue, and an app that does nothing."""

    def __init__(self, live: LiveService, directory: Path, cluster: SlurmCluster, **elastic: Any) -> None:
        super().__init__(live, directory, cluster)
        self.use_launcher()
        settings = {
            "name": "bench",
            "site_id": self.record.id,
            "scheduler": "slurm",
            "scheduler_poll_sec": 0.2,
            "cores": 8,
            "idle_ttl_sec": 1,
            "cancel_grace_sec": 1,
            "elastic_queue": {"enabled": True, "quiet_sec": 0.5, "service_period": 1, **elastic},
        }
        self.site.settings_file.write_text(json.dumps(settings))
        app = AppSpec(site_id=self.record.id, name="Nothing", command_template="true")
        self.app = self.service.put_app(app).id

    def submit(self, count: int, **fields: Any) -> list[int]:
        spec = JobSpec.model_validate({"app_id": self.app, "workdir": "w", **fields})
        return [job.id for job in self.service.create_jobs([spec] * count)]

    def finished(self, ids: list[int]) -> bool:
        return self.service.count_jobs(id=ids, state=[JobState.JOB_FINISHED]) == len(ids)

    @property
    def allocations(self) -> list[BatchJobRecord]:
        return self.service.batch_jobs(site_id=[self.record.id]).results

    def wait_over(self) -> None:
        def over() -> bool:
            return {job.state for job in self.allocations} == {BatchJobState.FINISHED}

        wait_until(over, 60, f"the allocations to end: {self.allocations}")


@pytest.fixture
def elastic_site(at_slurm: Callable[..., ElasticSite]) -> Callable[..., ElasticSite]:
    return partial(at_slurm, ElasticSite)


def test_jobs_come_and_the_nodes_are_idle_again(elastic_site: Callable[..., ElasticSite]) -> None:
    site = elastic_site(max_queued_jobs=3, max_wall_time_min=60)
    site.agent()
    jobs = site.submit(12, wall_time_min=20)
    wait_until(lambda: site.finished(jobs), 60, "the jobs to finish")
    site.wait_over()
    assert 1 <= len(site.allocations) <= 3
    wait_until(lambda: site.cluster.node_states() == ["idle"] * 4, 20, "the nodes to be idle")


def test_a_gap_is_filled_before_what_waits(elastic_site: Callable[..., ElasticSite], slurm: SlurmCluster) -> None:
    """Somebody has three nodes for ten minutes, somebody else waits for all four: one node is idle until then."""
    site = elastic_site(
        submit_queue="debug", use_backfill=True, min_wall_time_min=2, max_wall_time_min=60, wall_time_pad_min=1
    )
    request = ("sbatch", "--parsable", "--exclusive", "-pdebug", "-o/dev/null")
    hold = slurm.run(*request, "-N3", "-t10", "--wrap=sleep 300").strip()
    wait_until(lambda: sorted(slurm.node_states()).count("idle") == 1, 20, "one node to be left")
    wants = slurm.run(*request, "-N4", "-t5", "--wrap=true").strip()
    wait_until(lambda: start_of(slurm, wants) != "N/A", 30, "Slurm to say when it starts")
    site.agent()
    jobs = site.submit(5, wall_time_min=1)
    wait_until(lambda: site.finished(jobs), 60, "the jobs to finish")
    [allocation] = site.allocations
    assert allocation.wall_time_min < 10
    assert slurm.run("squeue", "-h", "-j", wants, "-o", "%T").strip() == "PENDING"
    slurm.run("scancel", hold, wants)


def start_of(slurm: SlurmCluster, job: str) -> str:
    return slurm.run("squeue", "-h", "-j", job, "-o", "%S").strip()
