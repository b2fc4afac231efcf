"""A process of ours with all that follows it: its children and theirs, and whatever else is in its session."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

from balsam_exec.platform.processes import Process


class Tree:
    """Led by a child of ours, the leader of a session, that is not waited for before we are done with the tree: till
    then no other process or group can bear its number."""

    def __init__(self, leader: int) -> None:
        self._leader = leader
        self._followers: set[Process] = set()  #: the living ones once it was told to end, wherever they go then
        self._warned: set[Process] = set()  #: those of them that were told, too
        self._told: signal.Signals | None = None
        self._mark = b""  #: in the environment of what may have left it before it was told
        self.unasked = False  #: whether its leader had ended before it was told to

    @property
    def told(self) -> bool:
        return self._told is not None

    def tell(self, signum: signal.Signals, job_id: int | None = None) -> None:
        """Signal every process, each once; with those of the job that have no living parent in it and that our guardian
        has adopted. Looks through /proc, so it is for the rare case."""
        if not self.told:
            self.unasked = Process.of(self._leader) is None
        if job_id is not None:
            self._mark = b"BALSAM_JOB_ID=%d" % job_id
        self._told = signum
        self._look()  # before its leader dies, for then its children are nobody's
        if (leader := Process.of(self._leader)) is not None:
            with suppress(PermissionError):
                _tell(leader, signum)
        self._tell_followers(signum)

    def survivor(self) -> int | None:
        """The pidfd of a process that lives on though the tree was told to end and its leader is dead. Whoever has
        come since is told, too. None: nothing is left, or nobody told it to end."""
        if self._told is None:
            return None
        self._tell_followers(self._told)
        return next((pidfd for process in self._followers if (pidfd := process.open()) is not None), None)

    def clear(self) -> None:
        """Kill what a leader that ended by itself left in its process group."""
        with suppress(ProcessLookupError, PermissionError):  # all gone; or all of another user (a set-uid program)
            os.killpg(self._leader, signal.SIGKILL)

    def _tell_followers(self, signum: signal.Signals) -> None:
        self._look()
        for process in self._followers:
            if signum == signal.SIGKILL or process not in self._warned:
                with suppress(PermissionError):
                    _tell(process, signum)
        self._warned = set(self._followers)

    def _look(self) -> None:
        leader = Process.of(self._leader) or Process(self._leader, 0)  # the latter: dead, and its number still ours
        known = self._followers | _adopted(self._mark) if self._mark else self._followers
        self._followers = set(leader.followers(known))


def _tell(process: Process, signum: signal.Signals) -> None:
    """An srun answers SIGTERM with the SIGKILL of its tasks, on whatever node; killed itself, it would leave them."""
    if not process.is_srun:
        process.send(signum)
    elif signum == signal.SIGKILL:
        process.send(signal.SIGTERM)


def _adopted(mark: bytes) -> set[Process]:
    """What our guardian (guardian.py) has adopted and that started with this variable in its environment."""
    guardian = os.getppid()
    found: set[Process | None] = set()
    with suppress(OSError):
        for pid in map(int, Path(f"/proc/{guardian}/task/{guardian}/children").read_text().split()):
            with suppress(OSError):
                if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    found.add(Process.of(pid))
    return {process for process in found if process is not None}
