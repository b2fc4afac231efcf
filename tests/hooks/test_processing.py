"""The processing service by itself: a job that had to wait for its turn is looked at again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from balsam_exec.hooks.pool import Task
from balsam_exec.model.apps import AppRecord
from balsam_exec.model.base import now
from balsam_exec.model.errors import BalsamError, NotFound, ServiceUnavailable
from balsam_exec.model.hooks import HookJob, HookWork
from balsam_exec.model.jobs import JobRecord
from balsam_exec.model.states import JobState
from balsam_exec.platform.settings import ProcessingSettings
from balsam_exec.site import processing
from balsam_exec.site.processing import Processing
from tests.support.processes import wait_until

JOB = JobRecord.model_construct(
    id=7, app_id=3, site_id=1, workdir="w", state=JobState.STAGED_IN, data={}, created=now(), last_update=now()
)
APP = AppRecord.model_construct(id=3, digest="d", payload=b"code", environment_variables={}, isolation="worker")


class FakeService:
    """Hands one job to its agent, and then nothing more until it is closed."""

    def __init__(self) -> None:
        self.job_now: JobRecord | Exception = JOB
        self._handed = False
        self._closed = threading.Event()

    def sibling(self) -> FakeService:
        return self

    def close(self) -> None:
        self._closed.set()

    def hook_work(self, _site_id: int, _query: Any, deadline: float) -> HookWork:
        del deadline
        if self._handed:
            assert self._closed.wait(60)
            raise ServiceUnavailable("closed")
        self._handed = True
        return HookWork(jobs=[HookJob.model_construct(job=JOB, epoch=0, app_digest="d", parents=[])])

    def app(self, _app_id: int) -> AppRecord:
        return APP

    def job(self, job_id: int) -> JobRecord:
        assert job_id == JOB.id
        if isinstance(self.job_now, Exception):
            raise self.job_now
        return self.job_now


class FakePool:
    """Keeps what it is to start."""

    starts: list[Callable[[], Any]]

    def __init__(self, *_: object) -> None:
        type(self).starts = []

    def submit(self, start: Callable[[], Any], timeout: float, done: Callable[[Any], None]) -> Task:
        self.starts.append(start)
        return Task(start, timeout, done)

    def close(self) -> None: ...


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def start(service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Any]]:
    """What the pool calls when it is the job's turn."""
    monkeypatch.setattr(processing, "HookPool", FakePool)
    part = Processing(service, 1, tmp_path, ProcessingSettings())  # type: ignore[arg-type]
    FakePool.starts = []
    part.start()
    wait_until(lambda: FakePool.starts, 10, "the job")
    yield FakePool.starts[0]
    part.stop()
    part.join(10)


def test_at_once_it_is_as_it_was_handed_over(service: FakeService, start: Callable[[], Any]) -> None:
    service.job_now = NotFound("not asked for")
    call, code = start()
    assert (call.job, code) == (JOB, b"code")


def test_later_it_is_as_it_is_then(
    service: FakeService, start: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processing, "_STALE", 0.0)
    service.job_now = JOB.model_copy(update={"data": {"changed": True}})
    assert start()[0].job.data == {"changed": True}


@pytest.mark.parametrize("error", [ServiceUnavailable("away"), BalsamError("an error over there")])
def test_later_without_the_service_it_is_as_it_was(
    service: FakeService, start: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, error: BalsamError
) -> None:
    monkeypatch.setattr(processing, "_STALE", 0.0)
    service.job_now = error
    assert start()[0].job == JOB


@pytest.mark.parametrize("now", [NotFound("deleted"), JOB.model_copy(update={"state": JobState.USER_KILLED})])
def test_later_it_may_be_gone(
    service: FakeService, start: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, now: JobRecord | Exception
) -> None:
    monkeypatch.setattr(processing, "_STALE", 0.0)
    service.job_now = now
    assert start() is None
    assert start() is None
