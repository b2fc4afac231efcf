"""Processes of this machine, told apart for good: a pid may be used again, a pid with its start time may not.

Only the standard library, and little of it: the supervisor of a deployment, which should stay small, uses this.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Become the parent of whatever below this process loses its own ("child subreaper")."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> None:
    """Have this process killed when the thread that forked it ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    import ctypes  # only those who need it pay for it

    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value}) failed")


def _stat(pid: int) -> list[bytes] | None:
    """The fields of /proc/PID/stat from the third on; None for a process that is gone, a zombie included."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in (b"Z", b"X") else fields


@dataclass(frozen=True)
class Process:
    """A process that runs or has run."""

    pid: int
    start: int  #: in clock ticks since the machine started

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The living process that now has this pid."""
        fields = _stat(pid)
        return None if fields is None else cls(pid, int(fields[19]))

    @property
    def alive(self) -> bool:
        return Process.of(self.pid) == self

    @property
    def is_srun(self) -> bool:
        """Whether it is Slurm's srun, which answers for processes on other nodes."""
        try:
            with open(f"/proc/{self.pid}/comm", "rb") as file:
                return file.read() == b"srun\n"
        except (FileNotFoundError, ProcessLookupError):
            return False

    def open(self) -> int | None:
        """A pidfd, which becomes readable when the process ends; None if it has. The caller closes it."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return None
        if self.alive:  # and so it was it that we opened
            return descriptor
        os.close(descriptor)
        return None

    def send(self, signum: signal.Signals) -> bool:
        """Signal it and nobody else; False if it has ended."""
        descriptor = self.open()
        if descriptor is None:
            return False
        try:
            signal.pidfd_send_signal(descriptor, signum)
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)
        return True

    def wait(self, timeout: float) -> bool:
        """Whether it ends within `timeout` seconds. It need not be our child."""
        descriptor = self.open()
        if descriptor is None:
            return True
        try:
            return bool(select.select([descriptor], [], [], max(0.0, timeout))[0])
        finally:
            os.close(descriptor)

    def end(self, timeout: float) -> None:
        """SIGTERM, and SIGKILL if it has not ended after `timeout` seconds; returns when it is gone."""
        if self.send(signal.SIGTERM) and not self.wait(timeout):
            self.send(signal.SIGKILL)
            self.wait(timeout)

    def followers(self, known: Iterable[Process] = ()) -> list[Process]:
        """The living processes that it started, they started and so on, and all others of the session it leads or led;
        not itself. What was started by a process that has ended is missed, unless it is of the session or, with all
        that it started, `known`.

        The kernel gives a pid to nobody else while a session bears its number.
        """
        leader = Process.of(self.pid)
        if leader not in (None, self):
            return []
        table = {pid: fields for name in os.listdir("/proc") if name.isdigit() and (fields := _stat(pid := int(name)))}
        children: dict[int, list[int]] = {}
        for pid, fields in table.items():
            children.setdefault(int(fields[1]), []).append(pid)
        found = {pid for pid, fields in table.items() if int(fields[3]) == self.pid}
        found.update(p.pid for p in known if p.pid in table and int(table[p.pid][19]) == p.start)
        pending = [self.pid, *found]
        while pending:
            below = [pid for pid in children.get(pending.pop(), []) if pid not in found]
            found.update(below)
            pending += below
        return [Process(pid, int(table[pid][19])) for pid in sorted(found - {self.pid})]

    def kill_followers(self) -> None:
        for process in self.followers():
            with suppress(PermissionError):  # a set-uid program: not ours to end
                process.send(signal.SIGKILL)
