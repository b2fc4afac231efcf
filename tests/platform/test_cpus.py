"""Cores, and processes that stay on them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from balsam_exec.model.errors import ConfigurationError
from balsam_exec.platform.cpus import confine, confined, cores_of

ALLOWED = os.sched_getaffinity(0)
SHOW = "import os; print(sorted(os.sched_getaffinity(0)))"

THREADS = """\
import os, sys, threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
print(flush=True)
sys.stdin.readline()
print(*(sorted(os.sched_getaffinity(int(thread))) for thread in os.listdir("/proc/self/task")))
"""


def show() -> str:
    return subprocess.run([sys.executable, "-S", "-c", SHOW], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """/sys/devices/system/cpu of four cores with two hardware threads each."""
    for cpu in range(8):
        topology = tmp_path / f"cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    return tmp_path


def test_hardware_threads_of_one_core_belong_together(system: Path) -> None:
    assert cores_of(range(8), system) == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert cores_of({1, 2, 6, 7}, system) == ((1,), (2, 6), (7,))


def test_where_the_kernel_does_not_tell_each_is_a_core(tmp_path: Path) -> None:
    assert cores_of({3, 1}, tmp_path) == ((1,), (3,))


def test_the_cores_of_this_machine() -> None:
    assert {cpu for core in cores_of(ALLOWED) for cpu in core} == ALLOWED


def test_what_is_started_meanwhile_is_confined_and_nothing_else() -> None:
    one = max(ALLOWED)
    with confined((one,)):
        inside = show()
    assert inside == str([one])
    assert os.sched_getaffinity(0) == ALLOWED
    assert show() == str(sorted(ALLOWED))
    with confined(()):
        assert show() == str(sorted(ALLOWED))


def test_cpus_that_are_not_there() -> None:
    with pytest.raises(ConfigurationError, match="the CPUs 100000 are not ours"), confined((100_000,)):
        pass
    assert os.sched_getaffinity(0) == ALLOWED


def test_a_running_process_is_confined_with_all_its_threads() -> None:
    words = [sys.executable, "-c", THREADS]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        confine(child.pid, (max(ALLOWED),))
        answer, _ = child.communicate("\n", timeout=20)
    assert answer.strip() == f"[{max(ALLOWED)}] [{max(ALLOWED)}]"
    confine(child.pid, (max(ALLOWED),))  # it has ended: nobody to confine
