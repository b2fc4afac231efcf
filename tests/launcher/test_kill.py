"""Killing what a launcher holds: what the pilot decides, and that nothing is left of the job when it is told."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from balsam_exec.apps import payload
from balsam_exec.launcher.events import Alive, Arrived, Delivered, Drain, Ended, Outcome, Send, Stale
from balsam_exec.model.apps import Isolation
from balsam_exec.model.jobs import Result
from balsam_exec.model.states import JobState
from tests.launcher.conftest import Running
from tests.launcher.fake_service import FakeService
from tests.launcher.test_pilot import DONE, FAILED, Ship, job
from tests.support.processes import wait_gone, wait_until

Launch = Callable[..., Running]
S = JobState
TERMINATED = Outcome(S.RUN_ERROR, Result(ok=False, reason="exit", return_code=-15), {"return_code": -15})
EXITED_0 = Outcome(S.RUN_DONE, Result(ok=True, return_code=0), {"return_code": 0})


def order(*leases: tuple[int, int]) -> Alive:
    return Alive(frozenset(leases))


# --- what the pilot decides


def test_a_running_job_is_told_to_end_then_killed_and_told_when_it_is_gone() -> None:
    ship = Ship()
    ship.step(Arrived((job(1), job(2))))
    ship.step(order((1, 1)))
    assert ship.kills() == [(1, signal.SIGTERM)]
    assert ship.reports() == []
    ship.step(order((1, 1)), after=4.9)
    assert ship.kills() == []  # the order is repeated as long as it is not carried out
    ship.step(after=0.2)
    assert ship.kills() == [(1, signal.SIGKILL)]
    ship.step(Delivered())
    ship.step(Ended(1, TERMINATED))
    assert ship.reports() == [(1, S.USER_KILLED)]
    [report] = [r for a in ship.actions if isinstance(a, Send) for r in a.reports]
    assert report.data == {"return_code": -15, "reason": "killed by its owner"}
    assert report.result is None


def test_a_job_that_waits_is_never_started() -> None:
    ship = Ship(cores=1)
    ship.step(Arrived((job(1, node_packing_count=1), job(2, node_packing_count=1))))
    ship.step(order((2, 1)))
    assert ship.kills() == []
    assert ship.reports() == [(1, S.RUNNING), (2, S.USER_KILLED)]
    ship.step(Ended(1, DONE))
    assert ship.started() == []


def test_an_order_may_come_before_its_job() -> None:
    ship = Ship()
    ship.step(order((1, 1)))
    ship.step(Arrived((job(1), job(2))))
    assert ship.started() == [2]
    assert (1, S.USER_KILLED) in ship.reports()


def test_an_order_is_about_one_lease() -> None:
    ship = Ship()
    ship.step(order((1, 1)))
    ship.step(Arrived((job(1, epoch=2),)), order((1, 1)))
    assert ship.started() == [1]
    ship.step(order((1, 1)))
    assert ship.kills() == []
    ship.step(order((1, 2)))
    assert ship.kills() == [(1, signal.SIGTERM)]


@pytest.mark.parametrize(
    ("event", "told"),
    [
        (Ended(1, DONE), S.RUN_DONE),  # a value is worth more than the order
        (Ended(1, EXITED_0), S.USER_KILLED),  # a command that handles SIGTERM
        (Ended(1, EXITED_0, unasked=True), S.RUN_DONE),
        (Ended(1, FAILED, unasked=True), S.RUN_ERROR),
        (Ended(1, FAILED), S.USER_KILLED),
    ],
)
def test_what_ended_by_itself_before_is_told_as_it_was(event: Ended, told: JobState) -> None:
    ship = Ship()
    ship.step(Arrived((job(1),)))
    ship.step(order((1, 1)))
    ship.step(event)
    assert ship.reports()[-1] == (1, told)


def test_an_order_for_what_has_ended_does_nothing() -> None:
    ship = Ship()
    ship.step(Arrived((job(1),)))
    ship.step(Ended(1, DONE))
    ship.step(order((1, 1), (7, 3)))
    assert (ship.kills(), ship.reports()) == ([], [])


def test_a_drain_hastens_a_kill_and_does_not_rename_it() -> None:
    ship = Ship()
    ship.step(Arrived((job(1), job(2))))
    ship.step(order((1, 1)))
    ship.step(Drain("time is over"), after=1)
    assert ship.kills() == [(2, signal.SIGTERM)]
    ship.step(Drain("now", at_once=True))
    assert sorted(ship.kills()) == [(1, signal.SIGKILL), (2, signal.SIGKILL)]
    ship.step(Delivered(), Ended(1, TERMINATED), Ended(2, TERMINATED))
    assert ship.reports() == [(1, S.USER_KILLED), (2, S.RUN_TIMEOUT)]


def test_a_killed_job_whose_lease_ends_is_not_told() -> None:
    ship = Ship()
    ship.step(Arrived((job(1),)))
    ship.step(order((1, 1)), after=0.1)
    ship.step(Stale(frozenset({1})))
    assert ship.kills() == [(1, signal.SIGKILL)]
    ship.step(Ended(1, TERMINATED))
    assert ship.reports() == []


# --- what becomes of the processes


def pids_in(path: Path, count: int) -> list[int]:
    wait_until(lambda: path.exists() and path.read_text().count("\n") >= count, 20, f"{count} pids in {path}")
    return [int(line) for line in path.read_text().split()[:count]]


def running(service: FakeService, job_id: int, output: Path, count: int = 1) -> list[int]:
    """The processes that the job has told of, once the service knows that it runs."""
    found = pids_in(output, count)
    service.wait([job_id], S.RUNNING)
    return found


def test_a_command_and_all_below_it_are_gone_when_the_kill_is_told(
    service: FakeService, launch: Launch, tmp_path: Path
) -> None:
    """A shell that ignores SIGTERM, with a child in a session of its own that does so too."""
    deaf = "trap '' TERM; echo $$; while :; do sleep 0.1; done"
    launch(grace=0.3)
    app = service.add_app(command_template=f"trap '' TERM; echo $$; setsid bash -c \"{deaf}\" & wait; sleep 100")
    job_id = service.add_job(app, workdir="w")
    pids = running(service, job_id, tmp_path / "data/w/job.out", 2)
    left: list[int] = []
    service.report_fault = lambda reports: left.extend(
        pid for pid in pids if any(r.state is S.USER_KILLED for r in reports) and not wait_gone(pid, 0)
    )
    service.order_kill(job_id)
    service.wait([job_id])
    assert service.state[job_id] is S.USER_KILLED
    assert service.history[job_id][-1].data["return_code"] == -signal.SIGKILL
    assert left == []


def test_a_command_may_end_in_its_time_of_grace(service: FakeService, launch: Launch, tmp_path: Path) -> None:
    launch(grace=20.0)
    app = service.add_app(command_template="trap 'echo checkpoint; exit 3' TERM; echo $$; while :; do sleep 0.05; done")
    job_id = service.add_job(app, workdir="w")
    running(service, job_id, tmp_path / "data/w/job.out")
    service.order_kill(job_id)
    service.wait([job_id])
    assert service.state[job_id] is S.USER_KILLED
    assert service.history[job_id][-1].data["return_code"] == 3
    assert "checkpoint" in (tmp_path / "data/w/job.out").read_text()


@pytest.mark.parametrize("isolation", Isolation)
def test_a_call_and_what_it_started_are_gone_and_the_next_runs(
    service: FakeService, launch: Launch, tmp_path: Path, isolation: Isolation
) -> None:
    def loop() -> None:
        print(os.getpid(), flush=True)
        print(subprocess.Popen(["sleep", "100"], start_new_session=True).pid, flush=True)
        while True:
            pass

    launch(cores=1)
    app = service.add_app(hooks=["run"], payload=payload.call_app(1).payload, isolation=isolation)
    job_id = service.add_job(app, workdir="w", arguments=payload.dump_call(loop, (), {}))
    pids = running(service, job_id, tmp_path / "data/w/job.out", 2)
    service.order_kill(job_id)
    service.wait([job_id])
    assert service.state[job_id] is S.USER_KILLED
    assert all(wait_gone(pid, 0) for pid in pids)
    after = service.add_job(app, workdir="w", arguments=payload.dump_call(abs, (-1,), {}))
    service.wait([after])
    assert payload.load_result(service.results[after]) == 1


def test_a_call_that_answers_after_it_was_told_to_end_is_told_when_nothing_is_left(
    service: FakeService, launch: Launch, tmp_path: Path
) -> None:
    def stubborn() -> int:
        child = subprocess.Popen(["bash", "-c", "trap '' TERM; echo $$; while :; do sleep 0.1; done"])
        told: list[Any] = []
        signal.signal(signal.SIGTERM, lambda *args: told.append(args))
        print(os.getpid(), flush=True)
        while not told:
            time.sleep(0.01)
        return child.pid

    launch(cores=1, grace=0.5)
    app = service.add_app(hooks=["run"], payload=payload.call_app(1).payload)
    job_id = service.add_job(app, workdir="w", arguments=payload.dump_call(stubborn, (), {}))
    pids = running(service, job_id, tmp_path / "data/w/job.out", 2)
    service.order_kill(job_id)
    service.wait([job_id])
    assert service.state[job_id] is S.RUN_DONE
    assert payload.load_result(service.results[job_id]) in pids
    assert all(wait_gone(pid, 0) for pid in pids)
    after = service.add_job(app, workdir="w", arguments=payload.dump_call(abs, (-1,), {}))
    service.wait([after])
    assert payload.load_result(service.results[after]) == 1


def test_a_kill_interrupts_the_long_poll(service: FakeService, launch: Launch, tmp_path: Path) -> None:
    """With a heartbeat every 15 s, the order is there at once."""
    launch()
    job_id = service.add_job(service.add_app(command_template="echo $$; exec sleep 100"), workdir="w")
    running(service, job_id, tmp_path / "data/w/job.out")
    start = time.monotonic()
    service.order_kill(job_id)
    service.wait([job_id], timeout=10)
    assert time.monotonic() - start < 10
    assert service.heartbeats < 10
