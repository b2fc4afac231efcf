"""Allocations on this machine: each starts at once, detached, in a session of its own.

An id is `pid.start@host`: the process that leads the allocation's session, which no other process can be taken for.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from balsam_exec.platform.processes import Process
from balsam_exec.platform.schedulers.base import Scheduler, SchedulerState, SchedulerUnavailable, Status, SubmitSpec

_WRAPPER = Path(__file__).with_name("local_allocation.sh")
#: Seconds for a new allocation to say its id.
_START_TIMEOUT = 20.0
#: Seconds for the leader of an allocation to record the end of one whose processes were all killed.
_LAST_WORDS = 5.0


class LocalScheduler(Scheduler):
    """Runs each script at once on this machine. What it has to remember is in files: it may be restarted at any time.

    In `directory`: `KEY.id` holds the id of a submission, `ID.exit` the exit code once it has ended.
    """

    def __init__(self, directory: Path, *, on_change: Callable[[], None], grace: float = 30.0) -> None:
        self._directory = directory.absolute()
        self._grace = grace
        self._host = socket.gethostname()
        self._children: set[int] = set()
        self._watcher = _Watcher(self._collect, on_change)

    def submit(self, script: Path, spec: SubmitSpec) -> str:
        reader, writer = os.pipe()
        try:
            argv = ["bash", _WRAPPER, script.absolute(), self._id_file(spec.key), self._host]
            argv += [self._directory.parent, spec.log.absolute()]
            # Only what is inheritable goes to the child: the standard streams, with our pipe for its output.
            pid = os.posix_spawnp(
                "bash",
                [str(word) for word in argv],
                os.environ,
                file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), (os.POSIX_SPAWN_DUP2, writer, 1)],
                setsid=True,
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM],
                setsigmask=[],
            )
            self._children.add(pid)
        finally:
            os.close(writer)
        try:
            scheduler_id = _read_line(reader)
        finally:
            os.close(reader)
        leader = _leader(scheduler_id)
        if leader.pid != pid:  # this key was submitted before
            self._collect(pid)
        if not self._watcher.watch(leader):
            self._collect(leader.pid)
        return scheduler_id

    def find(self, key: str) -> str | None:
        try:
            return self._id_file(key).read_text().strip()
        except FileNotFoundError:
            return None

    def statuses(self, ids: Iterable[str]) -> dict[str, Status]:
        return {scheduler_id: self._status(scheduler_id) for scheduler_id in ids}

    def cancel(self, scheduler_id: str) -> None:
        leader = _leader(scheduler_id)
        if self._elsewhere(scheduler_id) or self._watcher.is_killing(leader) or not leader.send(signal.SIGTERM):
            return
        if self._watcher.watch(leader):
            self._watcher.kill_after(leader, self._grace)

    def close(self) -> None:
        self._watcher.close()

    def _id_file(self, key: str) -> Path:
        return self._directory / f"{key}.id"

    def _elsewhere(self, scheduler_id: str) -> bool:
        return scheduler_id.partition("@")[2] != self._host

    def _status(self, scheduler_id: str) -> Status:
        if self._elsewhere(scheduler_id):
            where = scheduler_id.partition("@")[2]
            return Status(SchedulerState.UNKNOWN, info=f"it was started on {where}, this is {self._host}")
        leader = _leader(scheduler_id)
        if self._watcher.watch(leader):
            return Status(SchedulerState.RUNNING)
        # Nothing of it may outlive it: what the service then gives to others would run twice.
        leader.kill_followers()
        try:
            code = int((self._directory / f"{scheduler_id}.exit").read_text())
        except FileNotFoundError:
            return Status(SchedulerState.FINISHED, info="it was killed, or the machine was restarted")
        return Status(SchedulerState.FINISHED, code, f"exit code {code}")

    def _collect(self, pid: int) -> None:
        """Collect a child of ours; after a restart of the agent it is somebody else's."""
        if pid in self._children:
            self._children.discard(pid)
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _leader(scheduler_id: str) -> Process:
    pid, _, start = scheduler_id.partition("@")[0].partition(".")
    return Process(int(pid), int(start))


def end_all(directory: Path, grace: float) -> None:
    """End every allocation of this machine that was submitted in `directory`, for when no agent is there to do it."""
    host = socket.gethostname()
    ids = [file.read_text().strip() for file in directory.glob("*.id")]
    leaders = [_leader(scheduler_id) for scheduler_id in ids if scheduler_id.endswith(f"@{host}")]
    living = [leader for leader in leaders if leader.send(signal.SIGTERM)]
    deadline = time.monotonic() + grace
    for leader in living:
        if not leader.wait(deadline - time.monotonic()):
            leader.kill_followers()
            leader.end(_LAST_WORDS)


def _read_line(descriptor: int) -> str:
    """The line that the wrapper prints first. Raises SchedulerUnavailable if there is none."""
    deadline = time.monotonic() + _START_TIMEOUT
    text = b""
    while not text.endswith(b"\n"):
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        chunk = os.read(descriptor, 4096) if ready else b""
        if not chunk:
            raise SchedulerUnavailable("the allocation did not start (see the agent's log)")
        text += chunk
    return text.decode().strip()


class _Watcher:
    """A thread that tells when allocations end, and kills those that were given a time to end and did not."""

    def __init__(self, collect: Callable[[int], None], on_change: Callable[[], None]) -> None:
        self._collect = collect
        self._on_change = on_change
        self._lock = threading.Lock()
        self._watched: dict[int, Process] = {}  #: by pidfd
        self._deadlines: dict[Process, float] = {}
        self._last_words: set[Process] = set()  #: leaders whose followers have been killed
        self._closed = False
        self._wake = os.eventfd(0)
        self._epoll = select.epoll()
        self._epoll.register(self._wake, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, name="local-scheduler", daemon=True)
        self._thread.start()

    def watch(self, process: Process) -> bool:
        """Whether the process is alive; then its end will be told."""
        with self._lock:
            if process in self._watched.values():
                return process.alive
            descriptor = process.open()
            if descriptor is None:
                return False
            self._watched[descriptor] = process
            self._epoll.register(descriptor, select.EPOLLIN)
            return True

    def is_killing(self, process: Process) -> bool:
        with self._lock:
            return process in self._deadlines

    def kill_after(self, process: Process, seconds: float) -> None:
        with self._lock:
            self._deadlines[process] = time.monotonic() + seconds
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        self._closed = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._epoll.close()
        for descriptor in (self._wake, *self._watched):
            os.close(descriptor)

    def _run(self) -> None:
        while not self._closed:
            with self._lock:
                first = min(self._deadlines.values(), default=None)
            ready = self._epoll.poll(None if first is None else max(0.0, first - time.monotonic()))
            for descriptor, _ in ready:
                if descriptor == self._wake:
                    os.eventfd_read(self._wake)
                else:
                    self._end(descriptor)
            self._kill_overdue()

    def _end(self, descriptor: int) -> None:
        with self._lock:
            process = self._watched.pop(descriptor)
            self._deadlines.pop(process, None)
            self._last_words.discard(process)
            self._epoll.unregister(descriptor)
            os.close(descriptor)
        self._collect(process.pid)
        self._on_change()

    def _kill_overdue(self) -> None:
        """First all but the leader, which then records how its script ended; if it does not, the leader too."""
        with self._lock:
            now = time.monotonic()
            for process in [p for p, deadline in self._deadlines.items() if deadline <= now]:
                process.kill_followers()
                if process in self._last_words:
                    process.send(signal.SIGKILL)
                self._last_words.add(process)
                self._deadlines[process] = now + _LAST_WORDS
