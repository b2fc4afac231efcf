"""A launcher over a real service: acquires and reports take the lane while there is one."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from balsam_exec.client.feed import follow
from balsam_exec.client.service import Service
from balsam_exec.launcher.launcher import Launcher, Mission
from balsam_exec.launcher.pilot import Terms
from balsam_exec.model.apps import AppSpec
from balsam_exec.model.jobs import JobSpec
from balsam_exec.model.sessions import LeasedJob, SessionSpec
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

    def acquire(self, *arguments: Any, **options: Any) -> list[LeasedJob]:
        self.over_http.append("acquire")
        return super().acquire(*arguments, **options)

    def report(self, *arguments: Any, **options: Any) -> None:
        self.over_http.append("report")
        super().report(*arguments, **options)


class World:
    def __init__(self, live: LiveService, directory: Path) -> None:
        self.live = live
        self.service = Watched(live.url, live.token)
        self.site = self.service.create_site(SiteSpec(name="here")).id
        self.app = self.service.put_app(AppSpec(site_id=self.site, name="t", command_template="true")).id
        session = self.service.open_session(SessionSpec(site_id=self.site))
        node = local_node(2, 0, environ={}, dev=directory)
        mission = Mission(directory / "data", directory / "exchange", (node,), Terms(ttl=session.ttl_sec))
        self.launcher = Launcher(self.service, session, mission, os.environ)
        self.thread = threading.Thread(target=self.launcher.run)
        self.thread.start()

    def run(self, count: int) -> None:
        """Create jobs and wait until they have finished."""
        feed = follow(self.live.service, kind="job", to_state=["JOB_FINISHED", "FAILED"])
        timer = threading.Timer(DEADLINE, feed.stop)
        timer.start()
        created = self.live.service.create_jobs([JobSpec(app_id=self.app, workdir="w")] * count)
        left = {job.id for job in created}
        for event in feed:
            assert event.to_state == JobState.JOB_FINISHED
            left.discard(event.subject_id)
            if not left:
                break
        timer.cancel()
        feed.stop()
        assert not left


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
