"""What every scheduler has to do, run over each of them; and what only the local one promises."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from balsam_exec.platform.processes import Process
from balsam_exec.platform.schedulers import LocalScheduler, Scheduler, Status, SubmitSpec
from balsam_exec.platform.schedulers.base import SchedulerState
from tests.support.processes import wait_until

FINISHED, RUNNING, UNKNOWN = SchedulerState.FINISHED, SchedulerState.RUNNING, SchedulerState.UNKNOWN


class Bench:
    """A scheduler with a directory, and what one needs to wait for it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.qsubmit = directory / "qsubmit"
        self.qsubmit.mkdir(exist_ok=True)
        self.log = directory / "log"
        self.changed = threading.Event()
        self.scheduler: Scheduler = self.make()

    def make(self) -> Scheduler:
        return LocalScheduler(self.qsubmit, on_change=self.changed.set, grace=0.3)

    def restart(self) -> None:
        self.scheduler.close()
        self.scheduler = self.make()

    def script(self, key: str, text: str) -> Path:
        script = self.qsubmit / f"{key}.sh"
        if script.exists():  # it may be running
            return script
        script.write_text(f"#!/bin/bash\n{text}\n")
        script.chmod(0o755)
        return script

    def submit(self, text: str, key: str = "1") -> str:
        return self.submit_script(self.script(key, text), key)

    def submit_script(self, script: Path, key: str = "1") -> str:
        spec = SubmitSpec(key, num_nodes=1, wall_time_min=1, queue="local", project="local", log=self.log)
        return self.scheduler.submit(script, spec)

    def status(self, scheduler_id: str) -> Status:
        return self.scheduler.statuses([scheduler_id])[scheduler_id]

    def wait_finished(self, scheduler_id: str, timeout: float = 10) -> Status:
        """Woken by the scheduler alone."""
        deadline = time.monotonic() + timeout
        while (status := self.status(scheduler_id)).state is not FINISHED:
            assert self.changed.wait(deadline - time.monotonic()), f"not told of the end of {scheduler_id}: {status}"
            self.changed.clear()
        return status

    def logged(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def wait_logged(self, line: str) -> None:
        wait_until(lambda: line in self.logged(), 10, f"{line!r} in the log")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    for marker in bench.qsubmit.glob("*.id"):
        leader = leader_of(marker.read_text().strip())
        leader.kill_followers()
        leader.end(5)
    bench.scheduler.close()


def leader_of(scheduler_id: str) -> Process:
    pid, start = scheduler_id.partition("@")[0].split(".")
    return Process(int(pid), int(start))


# --- the contract


@pytest.mark.parametrize("code", [0, 7])
def test_runs_the_script_and_knows_how_it_ended(bench: Bench, code: int) -> None:
    scheduler_id = bench.submit(f"echo hello; exit {code}")
    status = bench.wait_finished(scheduler_id)
    assert status.exit_code == code
    assert bench.logged() == ["hello"]


def test_a_running_one_is_running(bench: Bench) -> None:
    assert bench.status(bench.submit("exec sleep 60")).state is RUNNING


def test_find_knows_what_was_submitted(bench: Bench) -> None:
    assert bench.scheduler.find("1") is None
    scheduler_id = bench.submit("true")
    assert bench.scheduler.find("1") == scheduler_id
    bench.wait_finished(scheduler_id)
    assert bench.scheduler.find("1") == scheduler_id


def test_a_key_runs_once(bench: Bench) -> None:
    first = bench.submit("echo run; sleep 0.1")
    second = bench.submit("echo run; sleep 0.1")
    assert first == second
    bench.wait_finished(first)
    assert bench.submit("echo run") == first
    assert bench.logged() == ["run"]


def test_a_key_runs_once_when_several_submit_it_at_once(bench: Bench) -> None:
    ids: list[str] = []
    script = bench.script("1", "echo run; exec sleep 60")
    threads = [threading.Thread(target=lambda: ids.append(bench.submit_script(script))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(ids) == 8
    assert len(set(ids)) == 1
    bench.wait_logged("run")
    bench.scheduler.cancel(ids[0])
    bench.wait_finished(ids[0])
    assert bench.logged().count("run") == 1


def test_cancel_lets_the_script_end_in_its_own_way(bench: Bench) -> None:
    scheduler_id = bench.submit("trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.01; done")
    bench.wait_logged("ready")
    bench.scheduler.cancel(scheduler_id)
    assert bench.wait_finished(scheduler_id).exit_code == 3
    assert bench.logged() == ["ready", "bye"]


def test_cancel_kills_what_does_not_end_and_all_it_started(bench: Bench) -> None:
    scheduler_id = bench.submit("trap '' TERM; set -m; sleep 71 & echo $!; while :; do sleep 0.01; done")
    wait_until(lambda: bool(bench.logged()), 10, "the script to start")
    child = Process.of(int(bench.logged()[0]))
    assert child is not None
    bench.scheduler.cancel(scheduler_id)
    bench.scheduler.cancel(scheduler_id)  # harmless
    assert bench.wait_finished(scheduler_id).exit_code == 128 + signal.SIGKILL
    assert not child.alive
    bench.scheduler.cancel(scheduler_id)  # harmless


def test_nothing_outlives_the_end_of_the_script(bench: Bench) -> None:
    scheduler_id = bench.submit("set -m; sleep 72 & echo $!")
    bench.wait_finished(scheduler_id)
    child = int(bench.logged()[0])
    wait_until(lambda: Process.of(child) is None, 10, "what the script left to be gone")


def test_a_restarted_scheduler_is_told_of_the_end(bench: Bench) -> None:
    scheduler_id = bench.submit("trap 'exit 4' TERM; echo ready; while :; do sleep 0.01; done")
    bench.wait_logged("ready")
    bench.restart()
    assert bench.status(scheduler_id).state is RUNNING
    leader_of(scheduler_id).send(signal.SIGTERM)
    assert bench.wait_finished(scheduler_id).exit_code == 4


def test_a_restarted_scheduler_knows_what_ended_meanwhile(bench: Bench) -> None:
    scheduler_id = bench.submit("exit 5")
    bench.wait_finished(scheduler_id)
    bench.restart()
    assert bench.status(scheduler_id) == Status(FINISHED, 5, "exit code 5")


# --- the local scheduler


def test_killed_without_a_word_is_finished_without_an_exit_code(bench: Bench) -> None:
    scheduler_id = bench.submit("exec sleep 60")
    leader_of(scheduler_id).send(signal.SIGKILL)
    status = bench.wait_finished(scheduler_id)
    assert status.exit_code is None
    assert "killed" in status.info
    leader = leader_of(scheduler_id)
    wait_until(lambda: not leader.followers(), 10, "the script to be gone too")


def test_another_machines_allocation_is_unknown(bench: Bench) -> None:
    scheduler_id = bench.submit("exec sleep 60").partition("@")[0] + "@another-login-node"
    assert bench.status(scheduler_id).state is UNKNOWN
    bench.scheduler.cancel(scheduler_id)
    assert bench.status(bench.submit("")).state is RUNNING


def test_a_pid_that_was_used_again_is_not_it(bench: Bench) -> None:
    own = Process.of(leader_of(bench.submit("exec sleep 60")).pid)
    assert own is not None
    host = bench.submit("").partition("@")[2]
    earlier = f"{own.pid}.{own.start - 1}@{host}"
    assert bench.status(earlier).state is FINISHED
    assert own.alive, "the process that has its pid now is left alone"


SUBMITTER = """
import sys
from pathlib import Path
from balsam_exec.platform.schedulers import LocalScheduler, SubmitSpec
directory = Path(sys.argv[1])
scheduler = LocalScheduler(directory / "qsubmit", on_change=lambda: None)
spec = SubmitSpec("1", num_nodes=1, wall_time_min=1, queue="", project="", log=directory / "log")
print(scheduler.submit(directory / "qsubmit" / "1.sh", spec), flush=True)
sys.stdin.read()
"""


def test_an_allocation_outlives_the_process_that_submitted_it(bench: Bench) -> None:
    bench.script("1", "echo run; exec sleep 60")
    command = [sys.executable, "-c", SUBMITTER, str(bench.directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as submitter:
        assert submitter.stdout is not None
        scheduler_id = submitter.stdout.readline().strip()
        submitter.kill()
    assert bench.scheduler.find("1") == scheduler_id
    assert bench.status(scheduler_id).state is RUNNING
    assert bench.submit("echo run") == scheduler_id
    bench.scheduler.cancel(scheduler_id)
    assert bench.wait_finished(scheduler_id).exit_code == 128 + signal.SIGTERM


def test_the_script_sees_signals_as_they_are_by_default(bench: Bench) -> None:
    """A shell ignores SIGINT in what it starts in the background; jobs must not inherit that."""
    scheduler_id = bench.submit("grep -E '^Sig(Ign|Blk)' /proc/self/status")
    bench.wait_finished(scheduler_id)
    blocked, ignored = (int(line.split()[1], 16) for line in bench.logged())
    assert blocked == 0
    assert not [
        signum
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGXFSZ)
        if ignored >> signum - 1 & 1
    ]
