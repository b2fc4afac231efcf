"""A temporary deployment ends with its creator, however that ends, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from balsam_exec.embedded import Deployment, DeploymentFailed
from balsam_exec.platform.processes import Process
from tests.embedded.conftest import allocation, kill, process_of, processes_of
from tests.support.processes import wait_until


def test_start_use_and_stop(balsam_home: Path) -> None:
    with Deployment.start(temporary=True) as deployment:
        assert deployment.temporary
        assert deployment.home != balsam_home
        processes = processes_of(deployment.home)
        service = deployment.service()
        assert service.default_site == "local"
        assert service.site(deployment.site_id).name == "local"
        service.close()
    assert not deployment.home.exists()
    assert not any(process.alive for process in processes)
    assert not balsam_home.exists(), "the user's own configuration is left alone"
    deployment.stop()  # harmless


def test_two_at_once() -> None:
    with Deployment.start(temporary=True) as one, Deployment.start(temporary=True) as other:
        assert one.url != other.url
        assert one.home != other.home


def test_its_allocations_end_with_it() -> None:
    with Deployment.start(temporary=True) as deployment:
        _, leader = allocation(deployment)
        started = time.monotonic()
    assert not leader.alive
    assert time.monotonic() - started < 10


def test_stop_after_the_supervisor_was_killed() -> None:
    deployment = Deployment.start(temporary=True)
    service, agent = process_of(deployment.home, "service"), process_of(deployment.home, "agent")
    _, leader = allocation(deployment)
    kill(deployment.home, "supervisor")
    deployment.stop()
    assert not deployment.home.exists()
    assert not any(process.alive for process in (service, agent, leader))


def test_what_cannot_start_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "tmp").mkdir()
    with pytest.raises(DeploymentFailed, match="service ended"):
        Deployment.start(temporary=True, database="nonsense://")
    assert list((tmp_path / "tmp").iterdir()) == []


CREATOR = """
import json, os, sys, time
from balsam_exec.embedded import Deployment
from tests.embedded.conftest import allocation, processes_of
deployment = Deployment.start(temporary=True)
_, leader = allocation(deployment)
child = os.fork() if "fork" in sys.argv else -1
if child == 0:
    time.sleep(60)
    os._exit(0)
found = [(p.pid, p.start) for p in (*processes_of(deployment.home), leader)]
try:
    print(json.dumps({"home": str(deployment.home), "processes": found, "child": child}), flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    assert deployment.service().health(deadline=0).status == "ok"
    deployment.stop()
"""


class Creator:
    """A process with a temporary deployment and an allocation in it."""

    def __init__(self, *arguments: str) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-c", CREATOR, *arguments], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self.popen.stdout is not None
        told = json.loads(self.popen.stdout.readline())
        self.home = Path(told["home"])
        self.processes = [Process(*found) for found in told["processes"]]
        self.child = told["child"]

    def assert_all_gone(self) -> None:
        deadline = time.monotonic() + 30
        for process in self.processes:
            assert process.wait(deadline - time.monotonic()), f"{process} is still there"
        wait_until(lambda: not self.home.exists(), 10, "the directory to be gone")


@pytest.fixture
def creators() -> Iterator[list[Creator]]:
    made: list[Creator] = []
    yield made
    for creator in made:
        creator.popen.kill()
        creator.popen.communicate(timeout=30)


def test_killed_creator(creators: list[Creator]) -> None:
    creators.append(Creator())
    creators[0].popen.kill()
    creators[0].assert_all_gone()


def test_killed_creator_whose_child_lives_on(creators: list[Creator]) -> None:
    """The child has inherited the pipe that the supervisor listens to."""
    creators.append(Creator("fork"))
    creators[0].popen.kill()
    try:
        creators[0].assert_all_gone()
    finally:
        os.kill(creators[0].child, signal.SIGKILL)


def test_ctrl_c_is_for_the_creator(creators: list[Creator]) -> None:
    creators.append(Creator())
    os.killpg(creators[0].popen.pid, signal.SIGINT)  # as a terminal does: to the whole foreground group
    out, _ = creators[0].popen.communicate(timeout=60)
    assert "interrupted" in out
    assert creators[0].popen.returncode == 0
    creators[0].assert_all_gone()
