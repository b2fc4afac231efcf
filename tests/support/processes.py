"""Waiting for processes and finding those that were left behind."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

#: Every process that a test starts inherits this variable, and so can be told from all others.
MARKER = "BALSAM_TEST_RUN"


def wait_until(condition: Callable[[], bool], timeout: float, what: str) -> None:
    """Poll a condition that nothing can announce (a file of another program, a port) until it holds.

    Raises TimeoutError, naming `what` was waited for, after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout} s for {what}")
        time.sleep(0.01)


@dataclass(frozen=True)
class Leftover:
    pid: int
    command: str
    test: str  #: the test that was running when it started

    def __str__(self) -> str:
        return f"{self.pid}: {self.command} (started in {self.test})"


def marked_processes(marker: str) -> list[Leftover]:
    """The living processes, apart from this one, that carry our marker with this value in their environment."""
    found = []
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit() or int(directory.name) == os.getpid():
            continue
        try:
            raw = (directory / "environ").read_bytes()
            command = (directory / "cmdline").read_bytes()
        except OSError:  # gone meanwhile, or somebody else's
            continue
        environ = dict(entry.split("=", 1) for entry in raw.decode(errors="replace").split("\0") if "=" in entry)
        if environ.get(MARKER) == marker:
            text = command.replace(b"\0", b" ").decode(errors="replace").strip()
            found.append(Leftover(int(directory.name), text, environ.get("PYTEST_CURRENT_TEST", "no test")))
    return found


def wait_gone(pid: int, timeout: float) -> bool:
    """Whether the process, which need not be our child, ends within `timeout` seconds."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], max(0.0, timeout))[0])
    finally:
        os.close(descriptor)


def reap_leftovers(marker: str, grace: float = 5) -> list[Leftover]:
    """Give marked processes `grace` seconds to end; kill and return those that did not."""
    deadline = time.monotonic() + grace
    left = [p for p in marked_processes(marker) if not wait_gone(p.pid, deadline - time.monotonic())]
    for process in left:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return left
