"""What only the local scheduler promises; the contract of all is in test_scheduler_contract.py."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from balsam_exec.platform.processes import Process
from balsam_exec.platform.schedulers.base import SchedulerState
from tests.platform.bench import LocalBench as Bench
from tests.platform.bench import leader_of
from tests.support.processes import wait_until

FINISHED, RUNNING, UNKNOWN = SchedulerState.FINISHED, SchedulerState.RUNNING, SchedulerState.UNKNOWN


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.close()


def test_nothing_outlives_the_end_of_the_script(bench: Bench) -> None:
    scheduler_id = bench.submit("set -m; sleep 72 & echo $!")
    bench.wait_finished(scheduler_id)
    child = int(bench.logged()[0])
    wait_until(lambda: Process.of(child) is None, 10, "what the script left to be gone")


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
    bench.script(bench.spec(), "echo run; exec sleep 60")
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


def test_it_asks_for_nothing_in_the_script_and_knows_of_no_windows(bench: Bench) -> None:
    assert bench.scheduler.directives(bench.spec(queue="fast", constraint="gpu")) == []
    assert bench.scheduler.windows() == []
    assert bench.scheduler.poll_sec is None
