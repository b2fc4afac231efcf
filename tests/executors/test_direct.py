"""The engine whose submitters send over a lane, with a real service and this test as its launcher."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from balsam_exec.client.lane import SHORT
from balsam_exec.model.apps import AppSpec
from balsam_exec.model.errors import NotFound, ServiceUnavailable
from balsam_exec.model.states import JobState
from tests.executors.lane_world import DEADLINE, World
from tests.support.services import LiveService
from tests.support.warm import Template


@pytest.fixture
def world(tmp_path: Path, template: Template) -> Iterator[World]:
    with LiveService(f"sqlite:///{tmp_path / 'balsam.db'}", tmp_path, template=template) as live:
        world = World(live)
        yield world
        world.end()


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


def test_what_was_submitted_while_the_lane_lost_an_answer_goes_too(world: World) -> None:
    os.kill(world.live.pid, signal.SIGSTOP)  # the first request waits for it, the others for that
    futures = [world.engine.submit(world.spec()) for _ in range(3)]
    world.live.restart()
    world.finish(3)
    assert [future.result(DEADLINE) for future in futures] == [0, 0, 0]
    assert len(world.created()) == 2


def test_what_was_submitted_while_a_job_was_refused_goes_too(world: World) -> None:
    os.kill(world.live.pid, signal.SIGSTOP)
    refused, good = world.engine.submit(world.spec(app_id=10**9)), world.engine.submit(world.spec())
    os.kill(world.live.pid, signal.SIGCONT)
    world.finish()
    assert good.result(DEADLINE) == 0
    assert isinstance(refused.exception(DEADLINE), NotFound)
