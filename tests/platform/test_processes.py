"""Processes are told apart by pid and start time."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from balsam_exec.platform.processes import Process
from tests.support.processes import wait_until


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as popen:
        yield popen
        popen.kill()


def process_of(popen: subprocess.Popen[bytes]) -> Process:
    process = Process.of(popen.pid)
    assert process is not None
    return process


def test_a_living_process_is_itself(sleeper: subprocess.Popen[bytes]) -> None:
    process = process_of(sleeper)
    assert process.alive
    assert not process.wait(0)


def test_a_pid_that_was_used_again_is_somebody_else(sleeper: subprocess.Popen[bytes]) -> None:
    earlier = Process(sleeper.pid, process_of(sleeper).start - 1)
    assert not earlier.alive
    assert earlier.open() is None
    assert not earlier.send(signal.SIGKILL)
    assert earlier.wait(0)
    assert sleeper.poll() is None


def test_a_zombie_is_gone(sleeper: subprocess.Popen[bytes]) -> None:
    process = process_of(sleeper)
    assert process.send(signal.SIGKILL)
    assert process.wait(10)
    assert sleeper.returncode is None  # not reaped yet
    assert not process.alive


def test_end_kills_what_does_not_listen() -> None:
    script = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); signal.pause()"
    with subprocess.Popen(["python3", "-c", script], stdout=subprocess.PIPE) as popen:
        assert popen.stdout is not None
        popen.stdout.readline()
        process_of(popen).end(0.2)
        assert popen.wait(10) == -signal.SIGKILL


def test_followers_are_killed_without_their_leader() -> None:
    # In process groups and sessions of their own, as a launcher and its jobs are.
    script = "set -m; sleep 61 & setsid -w bash -c 'sleep 62 & echo started; wait' & wait"
    with subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE, start_new_session=True) as popen:
        assert popen.stdout is not None
        popen.stdout.readline()
        leader = process_of(popen)
        members = leader.followers()
        assert len(members) == 4
        assert len({os.getsid(member.pid) for member in members}) == 2
        leader.kill_followers()
        assert all(member.wait(10) for member in members)
        popen.wait(10)
        assert popen.returncode >= 0, "the leader ended by itself"


def test_the_session_outlives_its_leader() -> None:
    with subprocess.Popen(
        ["bash", "-c", "sleep 63 & echo $!; read"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as popen:
        leader = process_of(popen)
        assert popen.stdin is not None
        assert popen.stdout is not None
        member = Process.of(int(popen.stdout.readline()))
        popen.stdin.close()
        popen.wait(10)
        wait_until(lambda: leader.followers() == [member], 10, "the member to be alone")
        leader.kill_followers()
        assert member is not None
        assert member.wait(10)
