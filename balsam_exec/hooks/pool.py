"""A pool of processes that run hooks: grown on demand, warm for a while, ended when idle.

One thread for each process: it sends a call, waits for the answer and watches the time.
"""

from __future__ import annotations

import logging
import os
import pickle
import select
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping

from balsam_exec.hooks import wire
from balsam_exec.hooks.calls import Ending, HookAnswer, HookCall
from balsam_exec.platform.processes import Process

log = logging.getLogger(__name__)

#: Seconds after which a process that has nothing to do ends.
IDLE = 60.0
#: Seconds that calls may wait for a process that is there before one more is started, which takes longer.
_PATIENCE = 0.3
#: Seconds that a keeper has to end a hook.
_GRACE = 8.0
#: Apps that a process may have loaded; one with more is replaced.
_APPS = 100

#: Asked when it is a call's turn: the call, and the code of its app; None to leave it.
Start = Callable[[], tuple[HookCall, bytes] | None]


class Task:
    """A call that was handed to the pool."""

    def __init__(self, start: Start, timeout: float, done: Callable[[HookAnswer], None]) -> None:
        self.start = start
        self.timeout = timeout
        self.done = done
        self.cancelled = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def __del__(self) -> None:
        os.close(self.cancelled)

    def cancel(self) -> None:
        """End it, if it has not ended; `done` is told so."""
        os.eventfd_write(self.cancelled, 1)


class HookPool:
    """Runs calls in at most `workers` processes, which see `environment`. Thread-safe."""

    def __init__(self, workers: int, environment: Mapping[str, str], idle: float = IDLE) -> None:
        self._workers = workers
        self._environment = dict(environment)
        self._idle = idle
        self._queue: deque[Task] = deque()
        self._running: set[Task] = set()
        self._threads: set[threading.Thread] = set()
        self._waiting = 0  #: threads that have nothing to do
        self._closed = threading.Event()
        self._changed = threading.Condition()

    @property
    def load(self) -> int:
        """How many calls are waiting or running."""
        with self._changed:
            return len(self._queue) + len(self._running)

    def submit(self, start: Start, timeout: float, done: Callable[[HookAnswer], None]) -> Task:
        """Run the hook that `start` names when it is its turn, for at most `timeout` seconds.

        A thread of the pool calls `done` with what came of it, once. After `close` nothing is run any more.
        """
        task = Task(start, timeout, done)
        with self._changed:
            self._queue.append(task)
            if self._waiting < len(self._queue) and len(self._threads) < self._workers:
                thread = threading.Thread(target=self._work, name="hook", args=(not self._threads,), daemon=True)
                self._threads.add(thread)
                thread.start()
            self._changed.notify()
        return task

    def close(self, patience: float = _GRACE) -> None:
        """End all that runs; what did not end by itself is not told to `done`."""
        with self._changed:
            self._closed.set()
            self._queue.clear()
            for task in self._running:
                task.cancel()
            self._changed.notify_all()
            threads = list(self._threads)
        deadline = time.monotonic() + patience
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self, at_once: bool) -> None:
        keeper: _Keeper | None = None
        try:
            if not at_once:  # those that are there may do it all in the time it takes to start one more
                self._closed.wait(_PATIENCE)
            while (task := self._next(self._idle if keeper else 0.0)) is not None:
                try:
                    if keeper is not None and not keeper.usable:
                        keeper.close()
                        keeper = None
                    keeper = keeper or _Keeper(self._environment)
                    wanted = task.start()  # now that it can begin at once
                    answer = None if wanted is None else keeper.run(task, *wanted)
                except OSError as error:
                    answer = HookAnswer(ending=Ending.BROKEN, error=f"no process can be started for it: {error}")
                self._finish(task, answer)
        finally:
            with self._changed:
                self._threads.discard(threading.current_thread())
            if keeper is not None:
                keeper.close()

    def _next(self, patience: float) -> Task | None:
        """The next call; None when there is none for so long, and then this thread is not counted any more."""
        with self._changed:
            self._waiting += 1
            self._changed.wait_for(lambda: self._queue or self._closed.is_set(), patience)
            self._waiting -= 1
            if not self._queue or self._closed.is_set():
                self._threads.discard(threading.current_thread())
                return None
            task = self._queue.popleft()
            self._running.add(task)
            return task

    def _finish(self, task: Task, answer: HookAnswer | None) -> None:
        with self._changed:
            self._running.discard(task)
            ended_by_us = self._closed.is_set() and answer is not None and answer.ending is Ending.CANCELLED
        if answer is not None and not ended_by_us:
            task.done(answer)


class _Keeper:
    """A keeper process (keeper.py) and the socket to it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Returns when it is ready. Raises OSError if it cannot be started."""
        self._payloads: set[str] = set()  #: the apps that it has
        self._channel, theirs = socket.socketpair()
        words = [sys.executable, "-P", "-m", "balsam_exec.hooks.keeper", str(theirs.fileno())]
        try:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=2,
                pass_fds=[theirs.fileno()],
                env=environment,
                cwd="/",
                start_new_session=True,
            )
        except BaseException:
            self._channel.close()
            raise
        finally:
            theirs.close()
        if wire.receive(self._channel) is None:
            raise OSError(self._lost().error)

    @property
    def usable(self) -> bool:
        return self._channel.fileno() >= 0 and self._process.poll() is None and len(self._payloads) < _APPS

    def run(self, task: Task, call: HookCall, payload: bytes) -> HookAnswer:
        known = call.app_digest in self._payloads
        try:
            wire.send(self._channel, pickle.dumps((call, None if known else payload)))
        except ConnectionError:
            return self._lost()
        self._payloads.add(call.app_digest)
        ready = _readable([self._channel.fileno(), task.cancelled], task.timeout)
        if self._channel.fileno() in ready:
            return self._receive()
        return self._end(Ending.CANCELLED if ready else Ending.TIMEOUT)

    def _end(self, why: Ending) -> HookAnswer:
        """End the hook; unless it has come to an end by itself in this very moment."""
        try:
            wire.send(self._channel, wire.END)
        except ConnectionError:
            return self._lost()
        if not _readable([self._channel.fileno()], _GRACE):
            log.error("a hook could not be ended in %.0f s", _GRACE)
            return self._lost(why)
        answer = self._receive()
        return answer if answer.ending is not Ending.CANCELLED else answer.model_copy(update={"ending": why})

    def _receive(self) -> HookAnswer:
        frame = wire.receive(self._channel)
        return self._lost() if frame is None else HookAnswer.model_validate_json(frame)

    def _lost(self, ending: Ending = Ending.DIED) -> HookAnswer:
        """It does not answer (any more): nothing that is left of it is to run."""
        pid = self._process.pid
        (Process.of(pid) or Process(pid, 0)).kill_followers()  # the latter: dead, and its number still ours
        self._process.kill()
        self._channel.close()
        return HookAnswer(ending=ending, error=f"the process that ran it died: exit code {self._process.wait()}")

    def close(self) -> None:
        """It ends with the channel."""
        self._channel.close()
        try:
            self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self._lost()


def _readable(descriptors: Iterable[int], timeout: float) -> set[int]:
    """Those that are, within so many seconds. Other than by `select`, they may be any number."""
    waiting = select.poll()
    for descriptor in descriptors:
        waiting.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in waiting.poll(timeout * 1000)}
