"""`balsam job wait`: exit codes that tell, a bar on a terminal, nothing in a pipe, and Ctrl-C that harms nobody."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest

from balsam_exec.cli.wait import exit_code
from balsam_exec.model.apps import AppRecord
from balsam_exec.model.sites import SiteRecord
from balsam_exec.model.states import JobState
from tests.cli.conftest import Balsam
from tests.cli.test_jobs import create, run_one

S = JobState


def test_all_finished(balsam: Balsam, site: SiteRecord, hello: AppRecord) -> None:
    jobs = [create(balsam, f"w{i}", "--tag", "kind=test") for i in range(2)]
    run_one(balsam, site, S.RUN_DONE)
    code: list[int] = []
    waiter = threading.Thread(target=lambda: code.append(balsam.run("job", "wait", *jobs)[0]))
    waiter.start()
    run_one(balsam, site, S.RUN_DONE)
    waiter.join(30)
    assert code == [0]
    assert balsam("job", "wait", "--tag", "kind=test") == "", "quiet in a pipe"
    assert [job["state"] for job in balsam.json("job", "wait", *jobs)] == ["JOB_FINISHED"] * 2


def test_some_failed(balsam: Balsam, site: SiteRecord, hello: AppRecord) -> None:
    done, failed, killed = (create(balsam, f"w{i}") for i in range(3))
    run_one(balsam, site, S.RUN_DONE)
    run_one(balsam, site, S.RUN_ERROR, "no water")
    balsam.service.kill_jobs([killed])
    code, out, err = balsam.run("job", "wait", done, failed, killed, "--json")
    assert code == 1
    assert [job["state"] for job in json.loads(out)] == ["JOB_FINISHED", "FAILED", "USER_KILLED"]
    assert f"job {failed} is FAILED: balsam job explain {failed}\n" in err
    assert balsam.run("job", "wait", done, killed)[0] == 3
    assert balsam.run("job", "wait", done)[0] == 0


def test_the_time_is_up(balsam: Balsam, hello: AppRecord) -> None:
    code, out, err = balsam.run("job", "wait", create(balsam, "w"), "--timeout", 0.1)
    assert (code, out) == (124, "")
    assert "1 of 1 jobs have not ended after 0.1 s" in err


def test_of_none(balsam: Balsam, hello: AppRecord) -> None:
    assert "say which jobs" in balsam.fails("job", "wait", code=2)
    assert "there is no job 4711" in balsam.fails("job", "wait", 4711)
    assert balsam.run("job", "wait", "--tag", "no=where")[0] == 0


def test_create_and_wait(balsam: Balsam, site: SiteRecord, hello: AppRecord) -> None:
    found: list[tuple[int, str, str]] = []
    arguments = ("job", "create", "--app", "Hello", "-w", "w", "-p", "name=x", "--wait")
    waiter = threading.Thread(target=lambda: found.append(balsam.run(*arguments)))
    waiter.start()
    deadline = time.monotonic() + 30
    while not (page := balsam.service.jobs(limit=1).results):
        assert time.monotonic() < deadline
    run_one(balsam, site, S.RUN_ERROR)
    waiter.join(30)
    [(code, out, _)] = found
    assert (code, out) == (1, f"{page[0].id}\n")


def test_on_a_terminal(balsam: Balsam, hello: AppRecord) -> None:
    """The bar is there while it waits; Ctrl-C ends the waiting alone."""
    job = create(balsam, "w")
    controller, terminal = pty.openpty()
    command = [sys.executable, "-m", "balsam_exec.cli", "job", "wait", str(job)]
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(command, stderr=terminal, stdout=subprocess.PIPE, env=environ) as waiter:
        os.close(terminal)
        seen = _read_until(controller, "0/1")
        waiter.send_signal(signal.SIGINT)
        seen += _read_until(controller, "waits again")
        assert waiter.wait(20) == 130
    os.close(controller)
    assert "1 of 1 jobs have not ended; they go on" in seen
    assert balsam.service.job(job).state is S.PREPROCESSED


def _read_until(controller: int, text: str) -> str:
    seen = ""
    while text not in seen:
        seen += os.read(controller, 4096).decode()  # fails at the end of the process; the test has a deadline
    return seen


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ({}, 0),
        ({S.JOB_FINISHED: 2}, 0),
        ({S.FAILED: 1, S.USER_KILLED: 1}, 1),
        ({S.USER_KILLED: 1, S.JOB_FINISHED: 1}, 3),
    ],
)
def test_exit_codes(ends: dict[JobState, int], code: int) -> None:
    assert exit_code(Counter(ends)) == code
