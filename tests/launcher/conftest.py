from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from balsam_exec.launcher.launcher import Launcher, Mission
from balsam_exec.launcher.pilot import Terms
from balsam_exec.model.jobs import Affinity
from balsam_exec.platform.nodes import local_node
from tests.launcher.fake_service import FakeService


class Running:
    """A launcher in a thread of the test's process, over a fake service."""

    def __init__(self, service: FakeService, mission: Mission) -> None:
        self.mission = mission
        self.launcher = Launcher(service, service.session(), mission, os.environ)
        self.kept_session: bool | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.kept_session = self.launcher.run()

    def join(self, timeout: float = 20) -> bool:
        """Whether it kept its session to its end."""
        self._thread.join(timeout)
        assert not self._thread.is_alive(), "the launcher did not end"
        assert self.kept_session is not None, "the launcher raised"
        return self.kept_session

    def stop(self) -> None:
        if self._thread.is_alive():
            self.launcher.drain("the test is over", at_once=True)
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def launch(service: FakeService, tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """`launch(cores=2, gpus=0, affinity="none", **terms)` runs a launcher; its data directory is tmp_path/data."""
    started: list[Running] = []

    def start(cores: int = 2, gpus: int = 0, affinity: Affinity = "none", **terms: Any) -> Running:
        node = local_node(cores, gpus, environ={}, dev=tmp_path)
        quick = replace(Terms(ttl=service.ttl, grace=1.0), **terms)
        mission = Mission(tmp_path / "data", tmp_path / "exchange", (node,), quick, batch_job_id=3, affinity=affinity)
        started.append(Running(service, mission))
        return started[-1]

    yield start
    for running in started:
        running.stop()
