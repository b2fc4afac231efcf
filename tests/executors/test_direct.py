"""The engine whose submitters send over a lane, with a real service and this test as its launcher."""

from __future__ import annotations

import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from balsam_exec.client.lane import SHORT
from balsam_exec.client.service import Service
from balsam_exec.executors.allocation import NoAllocation
from balsam_exec.executors.direct import DirectEngine
from balsam_exec.model.apps import AppRecord, AppSpec
from balsam_exec.model.base import now
from balsam_exec.model.errors import NotFound, ServiceUnavailable
from balsam_exec.model.jobs import JobCreated, JobSpec, Result
from balsam_exec.model.sessions import AcquireRequest, Report, SessionSpec
from balsam_exec.model.sites import SiteSpec
from balsam_exec.model.states import JobState
from tests.support.services import LiveService

DEADLINE = 20.0


class Watched(Service):
    """Counts what is created over HTTP."""

    over_http = 0

    def create_jobs(self, *arguments: Any, **options: Any) -> list[JobCreated]:
        self.over_http += 1
        return super().create_jobs(*arguments, **options)


class World:
    """A service of the test's own, an app at a site of it, a session that takes the jobs, and an engine."""

    def __init__(self, live: LiveService) -> None:
        self.live = live
        self.service = Watched(live.url, live.token)
        self.site = self.service.create_site(SiteSpec(name="here")).id
        self.app: AppRecord = self.service.put_app(AppSpec(site_id=self.site, name="t", command_template="true"))
        self.session = self.service.open_session(SessionSpec(site_id=self.site, ttl_sec=600)).id
        self.ended = threading.Event()
        self.tags = {"campaign": uuid.uuid4().hex}
        self.engine = self.new_engine(self.ended.set)

    def new_engine(self, on_end: Callable[[], None] = lambda: None) -> DirectEngine:
        return DirectEngine(self.service, self.tags, lambda result: result.return_code, NoAllocation(), on_end)

    def spec(self, **fields: Any) -> JobSpec:
        return JobSpec(**{"app_id": self.app.id, "workdir": "w", "tags": self.tags, **fields})

    def finish(self, count: int = 1, code: int = 0) -> None:
        """Take so many jobs and report that they ran."""
        while count:
            found = self.service.acquire(self.session, AcquireRequest(max_jobs=count, max_nodes=1, timeout=DEADLINE))
            assert found
            count -= len(found)
            ended = {"state": JobState.RUN_DONE, "result": Result(ok=True, return_code=code)}
            reports = [
                Report(job_id=job.id, epoch=job.epoch, timestamp=now(), **what)
                for job in found
                for what in ({"state": JobState.RUNNING}, ended)
            ]
            self.service.report(self.session, reports)

    def created(self) -> set[Any]:
        """The moments at which jobs were created: one for each request."""
        return {job.created for job in self.service.jobs(limit=1000).results}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with LiveService(f"sqlite:///{tmp_path / 'balsam.db'}", tmp_path) as live:
        world = World(live)
        yield world
        world.engine.fail_all(ServiceUnavailable("the test is over"))
        world.engine.close()
        world.engine.join()
        assert world.ended.wait(DEADLINE)
        world.service.close()


def test_jobs_go_and_come_back_over_the_lane(world: World) -> None:
    for code in range(3):
        future = world.engine.submit(world.spec())
        world.finish(code=code)
        assert future.result(DEADLINE) == code
        assert future.job_id
    assert world.service.over_http == 0


def test_what_is_submitted_while_a_request_is_under_way_goes_with_the_next(world: World) -> None:
    os.kill(world.live.pid, signal.SIGSTOP)
    try:
        futures = [world.engine.submit(world.spec()) for _ in range(20)]
    finally:
        os.kill(world.live.pid, signal.SIGCONT)
    world.finish(20)
    assert [future.result(DEADLINE) for future in futures] == [0] * 20
    assert len(world.created()) == 2
    assert world.service.over_http == 0


def test_it_goes_on_over_http_when_the_lane_ends(world: World) -> None:
    before = world.engine.submit(world.spec())
    assert world.engine.flush(DEADLINE)
    world.live.restart()
    after = world.engine.submit(world.spec())
    world.finish(2)
    assert (before.result(DEADLINE), after.result(DEADLINE)) == (0, 0)


def test_a_job_whose_answer_the_lane_lost_is_created_once(world: World) -> None:
    os.kill(world.live.pid, signal.SIGSTOP)  # the request waits for it
    future = world.engine.submit(world.spec())
    world.live.restart()
    world.finish()
    assert future.result(DEADLINE) == 0
    assert len(world.created()) == 1


def test_a_lane_is_opened_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("balsam_exec.executors.direct.REOPEN_SEC", 0.0)
    world.live.restart()
    for _ in range(2):
        future = world.engine.submit(world.spec())
        world.finish()
        assert future.result(DEADLINE) == 0
    sent = world.service.over_http
    future = world.engine.submit(world.spec())
    world.finish()
    assert future.result(DEADLINE) == 0
    assert world.service.over_http == sent


def test_a_job_that_is_refused_fails_alone(world: World) -> None:
    os.kill(world.live.pid, signal.SIGSTOP)  # so that all of them but the first come in one request
    specs = [world.spec(), world.spec(), world.spec(app_id=10**9), world.spec()]
    try:
        futures = [world.engine.submit(spec) for spec in specs]
    finally:
        os.kill(world.live.pid, signal.SIGCONT)
    world.finish(3)
    assert isinstance(futures[2].exception(DEADLINE), NotFound)
    assert [future.result(DEADLINE) for future in (futures[0], futures[1], futures[3])] == [0, 0, 0]


def test_what_is_long_and_what_needs_its_app_first_goes_over_http(world: World) -> None:
    long = world.engine.submit(world.spec(data={"x": "x" * SHORT}))
    app = AppSpec(site_id=world.site, name="later", command_template="true")
    later = world.engine.submit(world.spec(), app)
    world.finish(2)
    assert (long.result(DEADLINE), later.result(DEADLINE)) == (0, 0)
    assert world.service.over_http > 0


def test_a_job_of_before_is_followed(world: World) -> None:
    [job] = world.service.create_jobs([world.spec()])
    engine = world.new_engine()
    future = engine.adopt(job.id, job.state)
    world.finish(code=7)
    assert future.result(DEADLINE) == 7
    engine.close()
    engine.join()


def test_it_ends_with_its_last_future(world: World) -> None:
    future = world.engine.submit(world.spec())
    world.engine.close()
    assert not world.ended.is_set()
    world.finish()
    assert future.result(DEADLINE) == 0
    assert world.ended.wait(DEADLINE)


def test_a_kill_on_its_way_is_a_kill(world: World) -> None:
    future = world.engine.submit(world.spec())
    assert world.engine.kill([future]) == [future]
    assert world.service.job(future.job_id or 0).state is JobState.USER_KILLED


def test_what_was_given_up_is_not_sent_again(world: World) -> None:
    os.kill(world.live.pid, signal.SIGSTOP)  # the request waits for it
    future = world.engine.submit(world.spec())
    world.engine.fail_all(ServiceUnavailable("enough"))
    assert isinstance(future.exception(DEADLINE), ServiceUnavailable)
    world.engine.close()
    assert world.ended.wait(DEADLINE)
    os.kill(world.live.pid, signal.SIGCONT)
    assert world.service.over_http == 0
