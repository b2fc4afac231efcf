"""The pool of processes that run hooks, with real processes and no service."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from balsam_exec.api import ApplicationDefinition
from balsam_exec.apps.payload import dump_app
from balsam_exec.hooks import pool as pool_module
from balsam_exec.hooks.calls import Ending, HookAnswer, HookCall
from balsam_exec.hooks.pool import HookPool, Task
from balsam_exec.model.jobs import JobRecord
from balsam_exec.model.states import JobState
from tests.support.processes import wait_gone, wait_until

S = JobState
DEADLINE = 30


class Waits(ApplicationDefinition):
    command_template = "true"

    def preprocess(self) -> None:
        import os
        import time

        self.job.data["pid"] = os.getpid()
        with open("pid", "w") as file:
            file.write(str(os.getpid()))
        time.sleep(self.job.data.get("seconds", 0))
        self.job.state = "PREPROCESSED"


PAYLOAD = dump_app(Waits, ApplicationDefinition)


class Bench:
    """A pool, and what came of the calls that it was given."""

    def __init__(self, data: Path, workers: int, idle: float = 60) -> None:
        environment = {**os.environ, "BALSAM_URL": "http://127.0.0.1:9", "BALSAM_TOKEN": "none"}
        self.pool = HookPool(workers, environment, idle)
        self.answers: dict[int, HookAnswer] = {}
        self.skipped: set[int] = set()
        self._data = data
        self._changed = threading.Condition()

    def submit(self, number: int, seconds: float = 0, timeout: float = DEADLINE, skip: bool = False) -> Task:
        now = datetime.now(UTC)
        job = JobRecord(
            id=number,
            app_id=1,
            site_id=1,
            workdir="w",
            tags={},
            data={"seconds": seconds},
            parameters={},
            state=S.STAGED_IN,
            created=now,
            last_update=now,
        )
        call = HookCall("preprocess", job, str(self._data / str(number)), "digest")

        def start() -> tuple[HookCall, bytes] | None:
            if skip:
                self.skipped.add(number)
                return None
            return call, PAYLOAD

        def done(answer: HookAnswer) -> None:
            with self._changed:
                assert number not in self.answers, "told twice"
                self.answers[number] = answer
                self._changed.notify_all()

        return self.pool.submit(start, timeout, done)

    def wait(self, *numbers: int) -> list[HookAnswer]:
        with self._changed:
            assert self._changed.wait_for(lambda: set(numbers) <= set(self.answers), DEADLINE), self.answers
        return [self.answers[number] for number in numbers]

    def pid(self, number: int) -> int:
        """Of the process that runs the hook, once it does."""
        path = self._data / str(number) / "pid"
        wait_until(lambda: path.exists() and path.read_text() != "", DEADLINE, str(path))
        return int(path.read_text())


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path, workers=2)
    yield bench
    bench.pool.close()
    assert keepers() == []


def keepers() -> list[Any]:
    return [p for p in psutil.Process().children() if "balsam_exec.hooks.keeper" in command(p)]


def command(process: Any) -> list[str]:
    try:
        words: list[str] = process.cmdline()
    except psutil.Error:  # it has ended meanwhile
        return []
    return words


def test_one_process_serves_call_after_call(bench: Bench) -> None:
    for number in range(1, 21):
        bench.submit(number)
    answers = bench.wait(*range(1, 21))
    assert {answer.ending for answer in answers} == {Ending.RETURNED}
    assert {answer.patch.state for answer in answers} == {S.PREPROCESSED}
    bench.submit(21)
    bench.wait(21)
    assert 1 <= len(keepers()) <= 2


def test_long_calls_run_side_by_side(bench: Bench) -> None:
    bench.submit(1, seconds=1000)
    bench.submit(2, seconds=1000)
    bench.submit(3)
    assert bench.pid(1) != bench.pid(2)
    assert bench.pool.load == 3
    assert not bench.answers


def test_the_time_is_up(bench: Bench) -> None:
    bench.submit(1, seconds=1000, timeout=1)
    pid = bench.pid(1)
    [answer] = bench.wait(1)
    assert answer.ending is Ending.TIMEOUT
    assert wait_gone(pid, 0)
    bench.submit(2)
    assert bench.wait(2)[0].ending is Ending.RETURNED


def test_cancelled_while_it_runs_and_while_it_waits(tmp_path: Path) -> None:
    bench = Bench(tmp_path, workers=1)
    running, waiting = bench.submit(1, seconds=1000), bench.submit(2, seconds=1000)
    pid = bench.pid(1)
    waiting.cancel()
    running.cancel()
    assert [answer.ending for answer in bench.wait(1, 2)] == [Ending.CANCELLED] * 2
    assert wait_gone(pid, 0)
    bench.pool.close()


def test_a_call_that_is_left_when_its_turn_has_come(bench: Bench) -> None:
    bench.submit(1, skip=True)
    bench.submit(2)
    bench.wait(2)
    assert bench.skipped == {1}
    assert set(bench.answers) == {2}


@pytest.mark.parametrize("victim", ["runner", "keeper"])
def test_its_processes_killed(bench: Bench, victim: str) -> None:
    bench.submit(1, seconds=1000)
    runner = psutil.Process(bench.pid(1))
    (runner if victim == "runner" else runner.parent()).kill()
    [answer] = bench.wait(1)
    assert answer.ending is Ending.DIED
    assert wait_gone(runner.pid, 10)
    bench.submit(2)
    assert bench.wait(2)[0].ending is Ending.RETURNED


def test_idle_processes_end(tmp_path: Path) -> None:
    bench = Bench(tmp_path, workers=1, idle=0.2)
    bench.submit(1)
    bench.wait(1)
    wait_until(lambda: not keepers(), DEADLINE, "the idle process to end")
    bench.submit(2)
    assert bench.wait(2)[0].ending is Ending.RETURNED
    bench.pool.close()


def test_closing_ends_what_runs_and_tells_nobody(tmp_path: Path) -> None:
    bench = Bench(tmp_path, workers=1)
    bench.submit(1, seconds=1000)
    bench.submit(2)
    pid = bench.pid(1)
    started = time.monotonic()
    bench.pool.close()
    assert time.monotonic() - started < 8
    assert wait_gone(pid, 0)
    assert bench.answers == {}
    assert keepers() == []


def test_a_process_that_ends_at_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module.sys, "executable", "/bin/false")
    bench = Bench(tmp_path, workers=1)
    bench.submit(1)
    [answer] = bench.wait(1)
    assert answer.ending is Ending.BROKEN
    assert "no process can be started for it: the process that ran it died: exit code 1" in answer.error
    bench.pool.close()


def test_an_interpreter_that_cannot_be_started(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module.sys, "executable", "/no/such/python")
    bench.submit(1)
    [answer] = bench.wait(1)
    assert answer.ending is Ending.BROKEN
    assert "no process can be started for it" in answer.error
