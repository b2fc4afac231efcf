"""The service goes away and comes back; libEnsemble's workers do not notice."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from libensemble.executors.executor import Executor, TimeoutExpired

from balsam_exec.executors import BalsamExecutor
from balsam_exec.model.sites import SiteSpec
from balsam_exec.platform.settings import SiteDirectory
from tests.support.services import LiveService

DEADLINE = 60


@pytest.fixture
def executor(live_service: LiveService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BalsamExecutor]:
    """At a site that nobody serves: what is submitted waits."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Executor, "executor", None)
    spec = SiteSpec(name="here", path=str(tmp_path / "site"), hostname=socket.gethostname())
    site = live_service.service.create_site(spec)
    SiteDirectory(tmp_path / "site").create("here", site.id)
    executor = BalsamExecutor(service=live_service.service)
    executor.register_app(full_path="/bin/true")
    yield executor
    executor._here.engine.close()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_submitting_while_the_service_is_away(executor: BalsamExecutor, live_service: LiveService) -> None:
    first = executor.submit(app_name="true")
    assert executor._here.engine.flush(DEADLINE)
    live_service.kill()
    started = time.monotonic()
    second = executor.submit(app_name="true")
    for task in (first, second):
        task.poll()
        assert (task.state, task.finished) == ("WAITING", False)
    with pytest.raises(TimeoutExpired):
        second.wait(0.05)
    assert time.monotonic() - started < 5
    live_service.start()
    assert executor._here.engine.flush(DEADLINE)
    assert live_service.service.count_jobs(tags={"libe": "libe_workflow"}) == 2
    for task in (first, second):
        task.kill()
        assert task.state == "USER_KILLED"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_first_submission_waits_for_the_service(executor: BalsamExecutor, live_service: LiveService) -> None:
    live_service.kill()
    submitted = []
    thread = threading.Thread(target=lambda: submitted.append(executor.submit(app_name="true")))
    thread.start()
    thread.join(0.3)
    assert submitted == []
    live_service.start()
    thread.join(DEADLINE)
    [task] = submitted
    task.kill()
    assert task.cancelled()
