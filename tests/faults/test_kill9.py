"""kill -9 of any part in the middle of a campaign: every job ends exactly once, and right."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from pathlib import Path

import psutil
import pytest

from balsam_exec import BalsamPoolExecutor
from balsam_exec.client.service import Service
from balsam_exec.embedded import Deployment
from balsam_exec.embedded.layout import Layout, read_json, recorded
from balsam_exec.model.errors import WorkerDied
from balsam_exec.model.states import TERMINAL, JobState

pytestmark = pytest.mark.timeout(240)
TASKS = 300
DEADLINE = 120


@pytest.fixture
def deployment(balsam_home: Path) -> Iterator[Deployment]:
    with Deployment.start(balsam_home) as deployment:
        yield deployment


def part(name: str) -> Callable[[Deployment], int]:
    def pid(deployment: Deployment) -> int:
        process = recorded(read_json(Layout(deployment.home).state_file), name)
        assert process is not None
        return process.pid

    return pid


def launcher(deployment: Deployment) -> int:
    """The launcher is the one process of this deployment that runs balsam_exec.launcher."""
    for process in psutil.process_iter(["pid", "cmdline", "environ"]):
        command = process.info["cmdline"] or []
        home = (process.info["environ"] or {}).get("BALSAM_HOME")
        if "balsam_exec.launcher" in command and home == str(deployment.home):
            return int(process.info["pid"])
    raise AssertionError("no launcher is running")


def worker(deployment: Deployment) -> int:
    return next(
        p.pid
        for p in psutil.Process(launcher(deployment)).children(recursive=True)
        if "worker.py" in " ".join(p.cmdline())
    )


def square(i: int) -> int:
    time.sleep(0.01)
    return i * i


def job_histories(service: Service, ids: list[int]) -> dict[int, list[str]]:
    """The states each job came to, in order."""
    found: dict[int, list[str]] = {job_id: [] for job_id in ids}
    after = None
    while True:
        page = service.events(kind="job", limit=1000, after=after)
        for event in page.results:
            found[event.subject_id].append(event.to_state)
        if page.next is None:
            return found
        after = page.next


@pytest.mark.parametrize(
    ("name", "find"),
    [("service", part("service")), ("agent", part("agent")), ("launcher", launcher), ("worker", worker)],
)
def test_every_job_ends_exactly_once(deployment: Deployment, name: str, find: Callable[[Deployment], int]) -> None:
    pool = BalsamPoolExecutor(2)
    futures: list[Future[int]] = [pool.submit(square, i) for i in range(TASKS)]
    done, _ = wait(futures[: TASKS // 3], timeout=DEADLINE)
    assert len(done) == TASKS // 3
    victim = psutil.Process(find(deployment))
    os.kill(victim.pid, signal.SIGKILL)
    done, _ = wait(futures, timeout=DEADLINE)
    assert len(done) == TASKS
    pool.shutdown()

    service = deployment.service()
    ids = [future.job_id for future in futures]  # type: ignore[attr-defined]
    assert len(set(ids)) == TASKS
    histories = job_histories(service, ids)
    ends = {job_id: [s for s in states if s in TERMINAL] for job_id, states in histories.items()}
    assert all(len(end) == 1 for end in ends.values())
    assert Counter(s.state for s in service.job_states() for _ in range(s.count)) == Counter(
        end[0] for end in ends.values()
    )
    errors = {i: error for i, future in enumerate(futures) if (error := future.exception())}
    if name == "worker":
        assert all(isinstance(error, WorkerDied) for error in errors.values())
        assert len(errors) <= 1
    else:
        assert errors == {}
        assert all(end == [JobState.JOB_FINISHED] for end in ends.values())
    assert all(future.result() == i * i for i, future in enumerate(futures) if i not in errors)
