"""The elastic queue and the queue maintainer: jobs come, allocations appear; the work is done, nothing is left."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from balsam_exec.client.service import Service
from balsam_exec.model.apps import AppSpec
from balsam_exec.model.batch_jobs import BatchJobRecord, BatchJobSpec
from balsam_exec.model.jobs import JobSpec
from balsam_exec.model.states import BatchJobState, JobState
from balsam_exec.platform.settings import SiteDirectory
from balsam_exec.site.registration import init_site
from tests.site.conftest import RunningAgent
from tests.support.processes import wait_until
from tests.support.services import LiveService

#: A launcher that never comes.
WITHOUT_LAUNCHER = "#!/bin/bash\nexec {}\n"


class ElasticBench:
    """A site of the local scheduler and its agent, with an app that sleeps."""

    def __init__(self, live: LiveService, directory: Path) -> None:
        self.live = live
        self.record = init_site(self.service, directory, "bench")
        self.site = SiteDirectory(directory)
        self.app = self.service.put_app(
            AppSpec(site_id=self.record.id, name="Sleep", command_template="sleep {{ sec }}", parameters={"sec": {}})
        ).id
        self.agents: list[RunningAgent] = []

    @property
    def service(self) -> Service:
        return self.live.service

    def start(self, **settings: Any) -> RunningAgent:
        """An agent with these settings."""
        values = {"name": "bench", "site_id": self.record.id, "cores": 2, "idle_ttl_sec": 1, "cancel_grace_sec": 1}
        self.site.settings_file.write_text(json.dumps({**values, **settings}))
        agent = RunningAgent(self.site, self.live)
        self.agents.append(agent)
        return agent

    def submit(self, count: int, sec: float = 0, **fields: Any) -> list[int]:
        spec = {"app_id": self.app, "workdir": "w", "parameters": {"sec": str(sec)}, **fields}
        return [job.id for job in self.service.create_jobs([JobSpec(**spec)] * count)]

    @property
    def batch_jobs(self) -> list[BatchJobRecord]:
        return self.service.batch_jobs(site_id=[self.record.id]).results

    def wait_finished(self, ids: list[int]) -> None:
        def finished() -> bool:
            return self.service.count_jobs(id=ids, state=[JobState.JOB_FINISHED]) == len(ids)

        wait_until(finished, 60, "the jobs to finish")

    def wait_states(self, *states: BatchJobState, timeout: float = 30) -> None:
        def reached() -> bool:
            return sorted(job.state for job in self.batch_jobs) == sorted(states)

        wait_until(reached, timeout, f"the batch jobs to be {states}, not {self.batch_jobs}")

    def close(self) -> None:
        for agent in self.agents:
            if agent.popen.poll() is None:
                agent.tell("drain")
            agent.close()


@pytest.fixture
def bench(start_service: Callable[[str], LiveService], sqlite_url: str, tmp_path: Path) -> Iterator[ElasticBench]:
    found = ElasticBench(start_service(sqlite_url), tmp_path / "site")
    yield found
    found.close()


def elastic(**settings: Any) -> dict[str, Any]:
    return {"enabled": True, "quiet_sec": 0.2, "service_period": 1, **settings}


FINISHED, RUNNING = BatchJobState.FINISHED, BatchJobState.RUNNING


def test_jobs_come_and_go(bench: ElasticBench) -> None:
    agent = bench.start(elastic_queue=elastic())
    assert bench.batch_jobs == []
    first = bench.submit(3, wall_time_min=1)
    bench.wait_finished(first)
    bench.wait_states(FINISHED)
    [allocation] = bench.batch_jobs
    assert (allocation.num_nodes, allocation.wall_time_min, allocation.origin) == (1, 35, "elastic_queue")
    bench.wait_finished(bench.submit(1))
    bench.wait_states(FINISHED, FINISHED)
    assert "Traceback" not in agent.log


def test_the_limits_hold_and_the_first_allocation_waits_for_the_burst(bench: ElasticBench) -> None:
    bench.start(elastic_queue=elastic(max_queued_jobs=2, quiet_sec=1))
    ids = [job for _ in range(6) for job in bench.submit(1, 0.5, wall_time_min=30)]
    bench.wait_finished(ids)
    bench.wait_states(FINISHED, FINISHED)
    assert {job.origin for job in bench.batch_jobs} == {"elastic_queue"}


def test_what_does_not_fit_asks_for_nothing_and_is_told(bench: ElasticBench) -> None:
    agent = bench.start(elastic_queue=elastic(max_wall_time_min=60))
    bench.submit(2, wall_time_min=56)
    bench.submit(1, num_nodes=2)
    wait_until(lambda: "3 jobs want more nodes or time" in agent.log, 20, "it to be told")
    assert bench.batch_jobs == []


def test_another_ones_allocation_is_enough(bench: ElasticBench) -> None:
    spec = BatchJobSpec(site_id=bench.record.id, num_nodes=1, wall_time_min=35)
    bench.service.create_batch_job(spec)
    bench.start(elastic_queue=elastic())
    bench.wait_finished(bench.submit(1))
    bench.wait_states(FINISHED)


def test_allocations_that_run_no_job_are_not_requested_on_and_on(bench: ElasticBench) -> None:
    bench.site.job_template.write_text(WITHOUT_LAUNCHER.format("false"))
    agent = bench.start(elastic_queue=elastic())
    bench.submit(1)
    wait_until(lambda: "ran no job; trying again in" in agent.log, 20, "it to be told")
    assert len(bench.batch_jobs) == 1


def test_a_fixed_number_of_allocations(bench: ElasticBench) -> None:
    bench.site.job_template.write_text(WITHOUT_LAUNCHER.format("sleep 300"))
    maintained = {"enabled": True, "quiet_sec": 0.2, "service_period": 1, "num_queued_jobs": 2, "wall_time_min": 7}
    bench.start(queue_maintainer=maintained)
    bench.submit(1)
    bench.wait_states(RUNNING, RUNNING)
    assert {(job.wall_time_min, job.origin) for job in bench.batch_jobs} == {(7, "queue_maintainer")}


def test_draining_ends_the_allocations_and_requests_no_others(bench: ElasticBench) -> None:
    agent = bench.start(elastic_queue=elastic(max_queued_jobs=2, quiet_sec=0))
    bench.submit(8, 300, wall_time_min=30)
    bench.wait_states(RUNNING, RUNNING)
    agent.tell("drain")
    assert agent.close() == 0
    assert [job.state for job in bench.batch_jobs] == [FINISHED, FINISHED]
    assert bench.service.count_jobs(state=[JobState.RUNNING]) == 0
