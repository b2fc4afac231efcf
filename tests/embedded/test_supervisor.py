"""How the supervisor restarts what dies."""

from __future__ import annotations

import os
import select
import time
from itertools import pairwise
from pathlib import Path

import pytest

from balsam_exec.embedded import supervisor
from balsam_exec.embedded.layout import Layout
from balsam_exec.embedded.supervisor import Child


def run_once(child: Child) -> float:
    """Let the child run and end; the seconds that the supervisor would wait before the next start."""
    descriptor = child.start()
    assert select.select([descriptor], [], [], 10)[0]
    os.close(descriptor)
    child.collect()
    assert child.due is not None
    return child.due - time.monotonic()


def test_at_once_first_and_then_later_and_later(tmp_path: Path) -> None:
    child = Child("part", ["false"], dict(os.environ), tmp_path / "log")
    pauses = [run_once(child) for _ in range(12)]
    assert pauses[0] <= 0
    assert all(later >= earlier - 0.1 for earlier, later in pairwise(pauses))
    assert supervisor.LONGEST_PAUSE - 1 < pauses[-1] <= supervisor.LONGEST_PAUSE


def test_what_lived_long_is_restarted_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = Child("part", ["false"], dict(os.environ), tmp_path / "log")
    for _ in range(5):
        run_once(child)
    monkeypatch.setattr(supervisor, "HEALTHY_AFTER", 0.0)
    assert run_once(child) <= 0


def test_a_long_log_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "MAX_LOG", 10)
    log = tmp_path / "service.log"
    log.write_text("something longer\n")
    child = Child("part", ["echo", "new"], dict(os.environ), log)
    run_once(child)
    assert log.read_text() == "new\n"
    assert (tmp_path / "service.log.1").read_text() == "something longer\n"


def test_the_end_of_a_log(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.create()
    assert layout.log_tail("service") == ""
    layout.logs["service"].write_text("".join(f"line {i}\n" for i in range(5000)))
    assert layout.log_tail("service", lines=2) == "line 4998\nline 4999"
