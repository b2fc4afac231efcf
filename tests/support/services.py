"""The real service in a process of its own, reached over HTTP."""

from __future__ import annotations

import http.client
import json
import os
import select
import socket
import subprocess
import sys
import time
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

from tests.support.warm import Template, Warm

if TYPE_CHECKING:
    from balsam_exec.client.service import Service

START_TIMEOUT = 30.0


class LiveService:
    """`python -m balsam_exec.server` on a database. Over `restart` it keeps its port, and callers just wait.

    `url` and `token` reach it; `service` is a client of it. The process ends with this one, whatever happens.
    With a `template` it starts in a tenth of the time.
    """

    def __init__(self, database: str, directory: Path, *options: str, template: Template | None = None) -> None:
        self.database = database
        self._template = template
        self._options = options
        self._bootstrap = directory / "bootstrap.json"
        self._log = directory / "service.log"
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.host, self.port = self._socket.getsockname()
        self.url = f"http://{self.host}:{self.port}"
        try:
            self.start()
        except BaseException:
            self._socket.close()
            raise

    def start(self) -> None:
        """Start the process and wait until it is healthy."""
        with self._log.open("ab") as log:
            self._process = self._spawn(log)
        try:
            self._wait_healthy(time.monotonic() + START_TIMEOUT)
        except BaseException:
            self.kill()
            raise
        self.token: str = json.loads(self._bootstrap.read_text())["token"]

    def _spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes] | Warm:
        module, listener = "balsam_exec.server", self._socket.fileno()
        options = ["--database", self.database, "--bootstrap", str(self._bootstrap), "--until-eof", *self._options]
        if self._template:
            return self._template.start(module, [*options, "--fd", "3"], log, listener)
        command = [sys.executable, "-m", module, *options, "--fd", str(listener)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, pass_fds=[listener])

    def _wait_healthy(self, deadline: float) -> None:
        # The socket listens from the start, so the request waits in its queue until the service takes it.
        connection = http.client.HTTPConnection(self.host, self.port, timeout=START_TIMEOUT)
        exited = os.pidfd_open(self._process.pid)
        try:
            connection.request("GET", "/health")
            ready, _, _ = select.select([connection.sock, exited], [], [], deadline - time.monotonic())
            if connection.sock not in ready:
                raise RuntimeError(f"the service {'ended' if ready else 'is silent'} at its start:\n{self.log}")
            answer = connection.getresponse()
            if answer.status != 200:
                raise RuntimeError(f"/health: {answer.status} {answer.read().decode()}\n{self.log}")
        finally:
            os.close(exited)
            connection.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @cached_property
    def service(self) -> Service:
        """A client of this service as its bootstrapped user."""
        from balsam_exec.client.service import Service

        return Service(self.url, self.token)

    def kill(self) -> None:
        """kill -9: what the service keeps is what the database has."""
        self._process.kill()
        self._end()

    def _end(self) -> int:
        code = self._process.wait(timeout=20)
        if self._process.stdin:
            self._process.stdin.close()
        return code

    def restart(self) -> None:
        self.kill()
        self.start()

    def stop(self) -> None:
        """End it in an orderly way; an exit code other than 0 is an error."""
        self._socket.close()
        if self._process.poll() is not None:  # a test killed it
            return
        assert self._process.stdin
        self._process.stdin.close()
        try:
            code = self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        if code != 0:
            raise RuntimeError(f"the service ended with {code}:\n{self.log}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if "service" in self.__dict__:
            self.service.close()
        self.stop()
