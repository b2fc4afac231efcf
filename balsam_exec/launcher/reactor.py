"""One thread waits for everything: descriptors with their callbacks, and events that other threads post."""

from __future__ import annotations

import os
import selectors
import subprocess
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from balsam_exec.launcher.events import Event

Callback = Callable[[int], None]

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE


class Reactor:
    """Only `post` may be called from other threads and from signal handlers."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._events: deque[Event] = deque()
        self._closed = False
        self._closing = threading.RLock()  # reentrant: a signal handler may post in the midst of `close`
        self._wake_reader, self._wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.watch(self._wake_reader, self._drain_wake)

    def watch(self, fd: int, callback: Callback, mask: int = READ) -> None:
        """Call `callback(mask)` whenever the descriptor is ready."""
        self._selector.register(fd, mask, callback)

    def change(self, fd: int, callback: Callback, mask: int) -> None:
        self._selector.modify(fd, mask, callback)

    def forget(self, fd: int) -> None:
        self._selector.unregister(fd)

    def emit(self, event: Event) -> None:
        """An event of this thread's own; `run` returns it."""
        self._events.append(event)

    def post(self, event: Event) -> None:
        """After `close` nobody hears it."""
        self._events.append(event)
        with self._closing, suppress(BlockingIOError):  # a full pipe wakes as well
            if not self._closed:
                os.write(self._wake_writer, b"\0")

    def run(self, timeout: float | None) -> list[Event]:
        """The events of one turn, after waiting for them for at most `timeout` seconds."""
        for key, mask in self._selector.select(0 if self._events else timeout):
            key.data(mask)
        found = list(self._events)
        for _ in found:
            self._events.popleft()
        return found

    def close(self) -> None:
        with self._closing:
            self._closed = True
        self._selector.close()
        os.close(self._wake_reader)
        os.close(self._wake_writer)

    def _drain_wake(self, _: int) -> None:
        with suppress(BlockingIOError):
            while os.read(self._wake_reader, 4096):
                continue


def open_pidfd(process: subprocess.Popen[bytes]) -> int:
    """A descriptor that is ready when this child of ours ends. Without one (too many are open) the child is killed,
    since nobody would see its end, and OSError raised."""
    try:
        return os.pidfd_open(process.pid)
    except OSError:
        process.kill()
        process.wait()
        raise
