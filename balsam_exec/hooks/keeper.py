"""`python -m balsam_exec.hooks.keeper FD`: keeps one process that runs hooks, for a pool (pool.py).

    pool (agent, launcher) -> keeper -> runner -> what hooks start

The runner is forked, so another one is there in milliseconds when a hook crashes, and the apps it loads are never in
the keeper. As "child subreaper" the keeper adopts whatever below it loses its parent. So it can end all that a hook
has started, however it did that: when the pool says so, when the hook has returned or died, and when the pool is gone.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import select
import signal
import socket
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from balsam_exec.hooks import wire
from balsam_exec.hooks.calls import Ending, HookAnswer
from balsam_exec.hooks.runner import Runner
from balsam_exec.platform.processes import Process, adopt_orphans, die_with_parent

#: Seconds between SIGTERM and SIGKILL.
_GRACE = 1.0
#: Seconds after which what cannot be killed is left alone.
_GIVE_UP = 5.0
#: Calls after which a runner is replaced, whatever its hooks have made of it.
_CALLS = 1000


@dataclass
class _Child:
    pid: int
    pidfd: int
    channel: socket.socket
    calls: int = 0

    def close(self) -> None:
        self.channel.close()
        os.close(self.pidfd)


class Keeper:
    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._payloads: dict[str, bytes] = {}
        self._child: _Child | None = None
        me = Process.of(os.getpid())
        assert me is not None
        self._me = me

    def serve(self) -> None:
        """Until the pool is gone."""
        wire.send(self._channel, wire.READY)
        while (frame := wire.receive(self._channel)) is not None:
            if frame == wire.END:  # of a call that has been answered just before
                continue
            call, payload = pickle.loads(frame)
            if payload is not None:
                self._payloads[call.app_digest] = payload
            answer = self._carry_out(frame)
            if answer is None:
                break
            if call.isolated or self._worn_out() or self._left_behind():
                self._end_all()
            wire.send(self._channel, answer)
        self._end_all()

    def _carry_out(self, frame: bytes) -> bytes | None:
        """The answer of the runner, or how it died; None when the pool is gone."""
        child = self._child = self._child or self._fork()
        child.calls += 1
        with suppress(ConnectionError):  # it dies, as its pidfd tells
            wire.send(child.channel, frame)
        waiting = select.poll()
        waiting.register(self._channel, select.POLLIN)
        waiting.register(child.channel, select.POLLIN)
        waiting.register(child.pidfd, select.POLLIN)
        ready = {fd for fd, _ in waiting.poll()}
        if self._channel.fileno() in ready:
            word = wire.receive(self._channel)
            self._end_all()
            return None if word is None else _said(Ending.CANCELLED, "it was ended")
        answer = wire.receive(child.channel) if child.channel.fileno() in ready else None
        return self._epitaph(child) if answer is None else answer

    def _epitaph(self, child: _Child) -> bytes:
        """A runner that gives no answer is dead or dying."""
        select.select([child.pidfd], [], [], _GRACE)
        with suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
        child.close()
        self._child = None
        how = f"exit code {code}" if code >= 0 else f"killed by {_signal_name(-code)}"
        return _said(Ending.DIED, f"the process that ran it died: {how}")

    def _fork(self) -> _Child:
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            self._channel.close()
            _be_runner(theirs, self._payloads)
        theirs.close()
        return _Child(pid, os.pidfd_open(pid), ours)

    def _worn_out(self) -> bool:
        return self._child is not None and self._child.calls >= _CALLS

    def _left_behind(self) -> bool:
        """Whether a hook has left something running: children of its own, or orphans that have become ours."""
        runner = None if self._child is None else self._child.pid
        orphans = [pid for pid in _children(os.getpid()) if pid != runner and not _reap(pid)]
        return bool(orphans) or (runner is not None and any(map(Process.of, _children(runner))))

    def _end_all(self) -> None:
        """End every process below us, the runner too."""
        warned: set[Process] = set()
        start = time.monotonic()
        while (left := self._me.followers()) and time.monotonic() - start < _GIVE_UP:
            late = time.monotonic() - start >= _GRACE
            for process in left:
                if late or process not in warned:
                    with suppress(PermissionError):  # a set-uid program: not ours to end
                        process.send(signal.SIGKILL if late else signal.SIGTERM)
            warned.update(left)
            left[0].wait(0.1)
            _reap()
        _reap()
        if self._child is not None:
            self._child.close()
            self._child = None


def _be_runner(channel: socket.socket, payloads: dict[str, bytes]) -> NoReturn:
    # We leave without the interpreter's shutdown: threads of a hook must not keep a process that nobody wants any more.
    try:
        os.setsid()
        die_with_parent()
        Runner(payloads).serve(channel)
    except BaseException:  # noqa: BLE001 whatever it is, the keeper sees us end
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(70)
    os._exit(0)


def _children(pid: int) -> list[int]:
    """Those of each of its threads, dead ones that were not waited for too."""
    found: list[int] = []
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                found += map(int, file.read().split())
    return found


def _reap(pid: int = -1) -> bool:
    """Wait for a child that has ended, by default for all that have; whether there was any."""
    found = False
    with suppress(ChildProcessError):
        while os.waitpid(pid, os.WNOHANG)[0]:
            found = True
    return found


def _said(ending: Ending, error: str) -> bytes:
    return HookAnswer(ending=ending, error=error).model_dump_json().encode()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def main() -> None:
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)
    sys.argv = [""]
    faulthandler.enable()
    adopt_orphans()
    Keeper(channel).serve()


if __name__ == "__main__":
    main()
