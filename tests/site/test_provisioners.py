"""What the elastic queue asks of a service: no scheduler here, so that allocations wait until a test says otherwise."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from balsam_exec.client.service import Service
from balsam_exec.model.apps import AppSpec
from balsam_exec.model.base import now
from balsam_exec.model.batch_jobs import BatchJobPatch, BatchJobRecord, BatchJobSpec
from balsam_exec.model.jobs import JobSpec
from balsam_exec.model.sessions import AcquireRequest, Report, SessionSpec
from balsam_exec.model.sites import SitePatch, SiteSpec
from balsam_exec.model.states import BatchJobState, JobState
from balsam_exec.platform.schedulers import Window
from balsam_exec.platform.schedulers.base import SchedulerUnavailable
from balsam_exec.platform.settings import SiteSettings
from balsam_exec.site.elastic import Provisioner, provisioners
from balsam_exec.site.restraint import MAX_REFUSALS
from tests.support.processes import wait_until
from tests.support.services import LiveService

B = BatchJobState
#: Long enough for several looks.
A_WHILE = 1.0


def no_windows() -> list[Window]:
    return []


class Bench:
    def __init__(self, service: Service) -> None:
        self.service = service
        self.site = service.create_site(SiteSpec(name="here")).id
        self.app = service.put_app(AppSpec(site_id=self.site, name="A", command_template="true")).id
        self.stack = ExitStack()

    def start(
        self,
        section: str = "elastic_queue",
        windows: Callable[[], list[Window]] = no_windows,
        allowed: dict[str, Any] | None = None,
        **fields: Any,
    ) -> Provisioner:
        """Parts of an agent whose settings have this section."""
        values = {"enabled": True, "quiet_sec": 0.1, "service_period": 0.2, "max_num_nodes": 10, "max_queued_jobs": 5}
        if section == "queue_maintainer":
            values = {key: value for key, value in values.items() if not key.startswith("max_")}
        site = {"name": "here", "scheduler": "slurm", "cores": 8, "allowed_queues": allowed or {}}
        settings = SiteSettings.model_validate({**site, section: {**values, **fields}})
        [part] = provisioners(self.service, self.site, settings, windows)
        part.start()
        self.stack.callback(self.stop, part)
        return part

    @staticmethod
    def stop(part: Provisioner) -> None:
        part.stop()
        part.join(10)
        assert part._thread is not None
        assert not part._thread.is_alive()

    def submit(self, count: int, **fields: Any) -> list[int]:
        spec = JobSpec.model_validate({"app_id": self.app, "workdir": "w", "wall_time_min": 30, **fields})
        return [job.id for job in self.service.create_jobs([spec] * count)]

    def requested(self) -> list[BatchJobRecord]:
        return self.service.batch_jobs(site_id=[self.site]).results

    def shapes(self) -> list[tuple[int, int, str]]:
        return [(job.num_nodes, job.wall_time_min, job.state) for job in self.requested()]

    def wait_shapes(self, *expected: tuple[int, int, str]) -> None:
        wait_until(lambda: self.shapes() == list(expected), 20, f"{expected}, not {self.shapes()}")

    def patch(self, batch_job: BatchJobRecord, state: BatchJobState, **fields: Any) -> None:
        self.service.patch_batch_job(batch_job.id, BatchJobPatch(state=state, **fields))

    def end(self, batch_job: BatchJobRecord) -> None:
        """It ran, and did nothing."""
        self.patch(batch_job, B.RUNNING, start_time=now())
        self.patch(batch_job, B.FINISHED, end_time=now())

    def run_one(self, batch_job: BatchJobRecord) -> None:
        """It runs, and so does one job in it."""
        self.patch(batch_job, B.RUNNING, start_time=now())
        session = self.service.open_session(SessionSpec(site_id=self.site, batch_job_id=batch_job.id))
        [job] = self.service.acquire(session.id, AcquireRequest(max_jobs=1, max_nodes=1))
        for state in (JobState.RUNNING, JobState.RUN_DONE):
            self.service.report(session.id, [Report(job_id=job.id, epoch=job.epoch, state=state, timestamp=now())])


@pytest.fixture
def bench(start_service: Callable[[str], LiveService], sqlite_url: str) -> Iterator[Bench]:
    found = Bench(start_service(sqlite_url).service)
    with found.stack:
        yield found


def stays(bench: Bench) -> bool:
    """Whether the elastic queue leaves everything as it is."""
    before = bench.requested()
    with pytest.raises(TimeoutError):
        wait_until(lambda: bench.requested() != before, A_WHILE, "a change that must not come")
    return True


def test_a_burst_is_one_allocation_and_then_it_waits(bench: Bench) -> None:
    bench.start(quiet_sec=2)
    bench.submit(1)
    bench.wait_shapes((1, 35, B.PENDING_SUBMISSION))
    for _ in range(4):
        bench.submit(2)
    bench.wait_shapes((1, 35, B.PENDING_SUBMISSION), (8, 35, B.PENDING_SUBMISSION))
    assert stays(bench)


def test_what_has_nothing_to_do_any_more_is_taken_back(bench: Bench) -> None:
    bench.start()
    jobs = bench.submit(2)
    bench.wait_shapes((2, 35, B.PENDING_SUBMISSION))
    bench.service.kill_jobs(jobs)
    bench.wait_shapes((2, 35, B.PENDING_DELETION))


def test_what_runs_is_left_alone(bench: Bench) -> None:
    bench.start()
    jobs = bench.submit(2)
    bench.wait_shapes((2, 35, B.PENDING_SUBMISSION))
    [batch_job] = bench.requested()
    bench.patch(batch_job, B.RUNNING, start_time=now())
    bench.service.kill_jobs(jobs)
    assert stays(bench)


def test_another_agent_finds_what_the_last_one_requested(bench: Bench) -> None:
    first = bench.start()
    bench.submit(3)
    bench.wait_shapes((3, 35, B.PENDING_SUBMISSION))
    bench.stop(first)
    bench.start()
    assert stays(bench)


def test_only_jobs_with_the_tags_count(bench: Bench) -> None:
    bench.start(filter_tags={"kind": "md"})
    bench.submit(5)
    bench.submit(2, tags={"kind": "md"})
    bench.wait_shapes((2, 35, B.PENDING_SUBMISSION))
    assert bench.requested()[0].filter_tags == {"kind": "md"}


def test_windows_of_its_queue_are_filled(bench: Bench) -> None:
    gaps = [Window("other", 9, 600), Window("debug", 3, 45)]
    bench.start(windows=lambda: gaps, use_backfill=True, submit_queue="debug", submit_project="md")
    bench.submit(4)
    bench.wait_shapes((3, 35, B.PENDING_SUBMISSION), (1, 35, B.PENDING_SUBMISSION))
    assert {(job.queue, job.project) for job in bench.requested()} == {("debug", "md")}


def test_a_scheduler_that_cannot_be_asked_has_no_windows(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    def away() -> list[Window]:
        raise SchedulerUnavailable("nobody there")

    bench.start(windows=away, use_backfill=True, submit_queue="debug")
    bench.submit(4)
    bench.wait_shapes((4, 35, B.PENDING_SUBMISSION))
    assert "nobody there" in caplog.text


def test_an_allocation_that_ran_no_job_is_not_replaced_at_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    bench.start()
    bench.submit(1)
    bench.wait_shapes((1, 35, B.PENDING_SUBMISSION))
    bench.end(bench.requested()[0])
    wait_until(lambda: "ran no job; trying again in 15 s" in caplog.text, 20, "it to be told")
    assert stays(bench)


def test_one_that_the_scheduler_refused_neither(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.start()
    bench.submit(1)
    bench.wait_shapes((1, 35, B.PENDING_SUBMISSION))
    bench.patch(bench.requested()[0], B.SUBMIT_FAILED)
    wait_until(lambda: "ran no job" in caplog.text, 20, "it to be told")
    assert stays(bench)


def test_after_many_refusals_it_waits_for_help(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.submit(1)
    spec = BatchJobSpec(site_id=bench.site, num_nodes=1, wall_time_min=35, origin="elastic_queue")
    for _ in range(MAX_REFUSALS):
        refused = bench.service.create_batch_job(spec)
        bench.patch(refused, B.SUBMIT_FAILED, end_time=now(), status_info={"error": "no such account"})
    part = bench.start()
    wait_until(lambda: "refused the last 6 requests (no such account)" in caplog.text, 20, "it to be told")
    assert stays(bench)
    assert (part.status.state, part.status.retry) == ("retrying", None)
    assert "refused the last 6 requests (no such account)" in part.status.error, "as `balsam site status` has it"
    bench.service.patch_site(bench.site, SitePatch(hostname="login1"))  # as `balsam site sync` does
    wait_until(lambda: len(bench.requested()) == MAX_REFUSALS + 1, 20, "another request")
    assert caplog.text.count("refused the last 6 requests") == 1


def test_a_queue_that_is_full_is_asked_for_nothing(bench: Bench) -> None:
    limits = {"debug": {"max_queued_jobs": 2, "max_nodes": 10}}
    bench.service.patch_site(bench.site, SitePatch.model_validate({"allowed_queues": limits}))
    spec = BatchJobSpec(site_id=bench.site, num_nodes=1, wall_time_min=5, queue="debug", filter_tags={"a": "b"})
    mine = [bench.service.create_batch_job(spec) for _ in range(2)]
    bench.start(allowed=limits, submit_queue="debug", max_queued_jobs=2)
    bench.submit(1)
    assert stays(bench)
    bench.patch(mine[0], B.FINISHED, end_time=now())
    wait_until(lambda: len(bench.requested()) == 3, 20, "its request")
    assert bench.requested()[-1].origin == "elastic_queue"


def test_what_the_service_does_not_allow_is_told(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """The record of the site may be another one than its settings."""
    bench.service.patch_site(bench.site, SitePatch.model_validate({"allowed_projects": ["md"]}))
    bench.start()
    bench.submit(1)
    wait_until(lambda: "project 'local' is not among its projects: md" in caplog.text, 20, "it to be told")
    bench.service.patch_site(bench.site, SitePatch.model_validate({"allowed_projects": []}))
    bench.wait_shapes((1, 35, B.PENDING_SUBMISSION))


def test_one_that_ran_a_job_is(bench: Bench) -> None:
    bench.start()
    bench.submit(2, wall_time_min=1)
    bench.wait_shapes((1, 35, B.PENDING_SUBMISSION))
    [batch_job] = bench.requested()
    bench.run_one(batch_job)
    bench.patch(batch_job, B.FINISHED, end_time=now())
    bench.wait_shapes((1, 35, B.FINISHED), (1, 35, B.PENDING_SUBMISSION))


def test_one_that_was_cancelled_before_it_ran_is_replaced(bench: Bench) -> None:
    bench.start()
    bench.submit(1)
    bench.wait_shapes((1, 35, B.PENDING_SUBMISSION))
    bench.patch(bench.requested()[0], B.FINISHED, end_time=now())
    bench.wait_shapes((1, 35, B.FINISHED), (1, 35, B.PENDING_SUBMISSION))


def test_the_maintainer_asks_only_while_jobs_wait(bench: Bench) -> None:
    bench.start("queue_maintainer", num_queued_jobs=2, num_nodes=3, wall_time_min=7, job_mode="serial")
    bench.submit(1, num_nodes=2)  # none that runs in serial mode
    assert stays(bench)
    bench.submit(1)
    bench.wait_shapes((3, 7, B.PENDING_SUBMISSION), (3, 7, B.PENDING_SUBMISSION))
    assert stays(bench)


def test_it_stops_at_once(bench: Bench) -> None:
    """Though nothing happens, and it waits without end."""
    bench.stop(bench.start())
