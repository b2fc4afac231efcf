"""A launcher over a real service: acquires and reports take the lane while there is one."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from balsam_exec.client.feed import follow
from balsam_exec.client.lane import Lane
from balsam_exec.client.service import Service
from balsam_exec.launcher.asker import Habits
from balsam_exec.launcher.launcher import Launcher, Mission
from balsam_exec.launcher.pilot import Terms
from balsam_exec.model.apps import AppSpec
from balsam_exec.model.jobs import JobCreated, JobSpec
from balsam_exec.model.sessions import AcquireRequest, LeasedJob, SessionSpec
from balsam_exec.model.sites import SiteSpec
from balsam_exec.model.states import JobState
from balsam_exec.platform.nodes import local_node
from tests.support.services import LiveService

DEADLINE = 30.0


class Watched(Service):
    """Notes what goes over HTTP."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.over_http: list[str] = []
        self.acquired: SimpleQueue[list[int]] = SimpleQueue()  #: over HTTP
        self.asked: SimpleQueue[AcquireRequest] = SimpleQueue()  #: over the lane
        self.stood: SimpleQueue[AcquireRequest] = SimpleQueue()  #: there, for more than one answer

    def lane(self) -> Lane | None:
        lane = super().lane()
        assert lane is not None
        for name, asked in (("acquire", self.asked), ("keep_acquiring", self.stood)):
            setattr(lane, name, _noted(getattr(lane, name), asked))
        return lane

    def acquire(self, *arguments: Any, **options: Any) -> list[LeasedJob]:
        self.over_http.append("acquire")
        found = super().acquire(*arguments, **options)
        self.acquired.put([job.id for job in found])
        return found

    def report(self, *arguments: Any, **options: Any) -> None:
        self.over_http.append("report")
        super().report(*arguments, **options)


def _noted(ask: Callable[..., bool], asked: SimpleQueue[AcquireRequest]) -> Callable[..., bool]:
    def noted(session_id: int, request: AcquireRequest, key: str, then: Any) -> bool:
        asked.put(request)
        return ask(session_id, request, key, then)

    return noted


class World:
    def __init__(self, live: LiveService, directory: Path) -> None:
        self.directory = directory
        self.live = live
        self.service = Watched(live.url, live.token)
        self.site = self.service.create_site(SiteSpec(name="here")).id
        self.app = self._app("true")
        self.long = self._app(f"echo >> {directory}/runs; until test -e {directory}/go; do sleep 0.05; done")
        session = self.service.open_session(SessionSpec(site_id=self.site))
        node = local_node(4, 0, environ={}, dev=directory)
        mission = Mission(
            directory / "data",
            directory / "exchange",
            (node,),
            Terms(ttl=session.ttl_sec, habits=Habits(hold=DEADLINE)),
        )
        self.launcher = Launcher(self.service, session, mission, os.environ)
        self.thread = threading.Thread(target=self.launcher.run)
        self.thread.start()

    def _app(self, command: str) -> int:
        name = f"app{len(command)}"
        template = command if command == "true" else f"sh -c '{command}'"
        return self.service.put_app(AppSpec(site_id=self.site, name=name, command_template=template)).id

    def run(self, count: int, **fields: Any) -> None:
        """Create jobs and wait until they have finished."""
        with self.heard(JobState.JOB_FINISHED) as finish:
            finish({job.id for job in self.create(count, **fields)})

    def create(self, count: int = 1, **fields: Any) -> list[JobCreated]:
        return self.live.service.create_jobs([JobSpec(**{"app_id": self.app, "workdir": "w", **fields})] * count)

    @contextmanager
    def heard(self, state: JobState) -> Iterator[Callable[[set[int]], None]]:
        """From now on: `wait(ids)` until these jobs have come to the state."""
        feed = follow(self.live.service, kind="job", to_state=[state, "FAILED"])
        timer = threading.Timer(DEADLINE, feed.stop)
        timer.start()

        def wait(left: set[int]) -> None:
            for event in feed:
                assert event.to_state == state
                left.discard(event.subject_id)
                if not left:
                    break
            assert not left

        yield wait
        timer.cancel()
        feed.stop()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with LiveService(f"sqlite:///{tmp_path / 'balsam.db'}", tmp_path) as live:
        world = World(live, tmp_path)
        yield world
        world.launcher.drain("the test is over", at_once=True)
        world.thread.join(DEADLINE)
        assert not world.thread.is_alive()
        world.service.close()


def test_acquires_and_reports_take_the_lane(world: World) -> None:
    world.run(1)
    world.run(20)
    assert world.service.over_http == []


def test_without_it_they_go_over_http(world: World) -> None:
    world.run(1)
    world.live.restart()
    world.run(5)
    assert set(world.service.over_http) == {"acquire", "report"}


def test_one_request_brings_what_comes_little_by_little(world: World) -> None:
    for _ in range(3):
        world.run(1, node_packing_count=4)
    assert (world.service.stood.qsize(), world.service.asked.qsize()) == (1, 0)
    assert world.service.over_http == []


def test_what_stands_makes_way_for_what_fits(world: World) -> None:
    with world.heard(JobState.RUNNING) as started:
        started(
            {
                job.id
                for job in world.create(app_id=world.long, workdir="long", node_packing_count=4, threads_per_rank=3)
            }
        )
        world.create(node_packing_count=2, threads_per_rank=2)
        assert world.service.asked.get(timeout=DEADLINE / 3).max_cores_per_node == 1  # what stands waits longer
        world.run(1, node_packing_count=4)
        (world.directory / "go").touch()


def test_what_stood_when_the_lane_was_lost_is_repeated_and_no_job_runs_twice(world: World) -> None:
    with world.heard(JobState.RUNNING) as started:
        [job] = world.create(app_id=world.long, workdir="long", node_packing_count=4)
        started({job.id})
    assert world.service.stood.qsize() == 1
    world.live.restart()
    assert world.service.acquired.get(timeout=DEADLINE) == [job.id]
    with world.heard(JobState.JOB_FINISHED) as finished:
        (world.directory / "go").touch()
        finished({job.id})
    world.run(2)
    assert (world.directory / "runs").read_text() == "\n"
    found = world.live.service.job(job.id)
    assert (found.state, found.num_runs) == (JobState.JOB_FINISHED, 1)
