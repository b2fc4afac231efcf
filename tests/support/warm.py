"""Starts `python -m MODULE` in milliseconds: a process that has loaded the libraries becomes it by a fork.

Loading them takes a service a second of CPU, and hundreds of tests start one. What is forked is a process of its own,
with the arguments, environment, standard streams and exit code that `python -m` would have given it.

This file is also that process's program: a request on its standard input (a socket) is a JSON object and the file
descriptors of the new process: 0, 1, 2 and so on. The last is a pipe that gets its pid, and at its end its exit code.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import IO, Any, NoReturn

#: What is loaded before the first request.
LIBRARIES = ("balsam_exec.server.run",)
#: A request has at most so many bytes and descriptors; these come to the process below _FIRST.
_MAX_BYTES, _MAX_FDS = 200_000, 8
_FIRST = 100


class Warm:
    """A process that was forked: as much of subprocess.Popen as tests of processes need."""

    def __init__(self, stdin: IO[bytes], status: int) -> None:
        self.stdin = stdin
        self._status = os.fdopen(status, "rb", buffering=0)
        self.pid = int(self._status.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self._collect()
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Its exit code. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            self._collect()
        assert self.returncode is not None
        return self.returncode

    def _collect(self) -> None:
        self.returncode = int(self._status.readline())
        self._status.close()

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


class Template:
    """The process that is forked. It ends when it is closed, or this process ends; what was forked goes on."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen([sys.executable, "-P", __file__], stdin=theirs)

    def start(self, module: str, arguments: Sequence[str], output: IO[bytes], *fds: int) -> Warm:
        """`python -m module ARGUMENTS` with a pipe as its standard input; `fds` are its 3, 4 and so on."""
        stdin, writer = os.pipe()
        status, their_status = os.pipe()
        request = {"argv": [module, *arguments], "environ": dict(os.environ), "cwd": os.getcwd()}
        try:
            message = json.dumps(request).encode()
            socket.send_fds(self._socket, [message], [stdin, output.fileno(), output.fileno(), *fds, their_status])
        finally:
            os.close(stdin)
            os.close(their_status)
        return Warm(os.fdopen(writer, "wb"), status)

    def close(self) -> None:
        self._socket.close()
        self._process.wait(timeout=20)


def main() -> None:
    for library in LIBRARIES:
        import_module(library)
    gc.collect()
    gc.freeze()  # or the collector would write to, and so copy, all the memory that the forked ones share
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the minders
    requests = socket.socket(fileno=0)
    while (request := socket.recv_fds(requests, _MAX_BYTES, _MAX_FDS))[0]:
        message, fds, _, _ = request
        if os.fork() == 0:
            requests.detach()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if child := os.fork():
                mind(child, fds)
            become(json.loads(message), fds[:-1])
            break
        for fd in fds:
            os.close(fd)


def mind(child: int, fds: list[int]) -> NoReturn:
    """Tell its pid and its exit code. It stays a zombie, so that the pid means it, until the reader closes the pipe."""
    *others, status = fds
    for fd in (0, *others):  # or what it closes would stay open
        os.close(fd)
    try:
        os.write(status, b"%d\n" % child)
        ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        assert ended
        code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        os.write(status, b"%d\n" % code)
        closed = select.poll()
        closed.register(status, 0)
        closed.poll()
    finally:
        os._exit(0)


def become(request: dict[str, Any], fds: list[int]) -> None:
    """What `python -m` does."""
    away = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST) for fd in fds]
    os.closerange(0, _FIRST)
    for number, fd in enumerate(away):
        os.dup2(fd, number)
    os.closerange(_FIRST, _FIRST + 2 * _MAX_FDS)
    os.environ.clear()
    os.environ.update(request["environ"])
    os.chdir(request["cwd"])
    sys.argv[:] = request["argv"]
    runpy.run_module(request["argv"][0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
