"""Keeps the service and the agent of one deployment running.

It binds the service's socket and keeps it, so that a service that is being restarted refuses nobody: callers wait.
The children have a pipe from here as their standard input and end when it does, so that nothing outlives a
supervisor that is killed. It says on its standard output, in one line of JSON, that all is ready or what failed.

It lives as long as the deployment and does next to nothing: only small modules are imported here.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from balsam_exec.embedded.layout import SITE_NAME, Layout, read_json, recorded, without_password, write_json
from balsam_exec.platform.processes import Process

#: Seconds for the allocations to be drained, and for a child to end, before they are killed.
DRAIN_TIMEOUT = 60.0
END_TIMEOUT = 10.0
#: A child that lived for so many seconds is restarted at once; one that keeps dying waits longer each time.
HEALTHY_AFTER = 20.0
LONGEST_PAUSE = 30.0
BACKLOG = 1024
#: A log that is longer, in bytes, is set aside when its part starts.
MAX_LOG = 16 * 1024 * 1024


class Child:
    """The service or the agent: one process after the other, each with a pipe from us as its standard input."""

    def __init__(self, name: str, command: list[str], environ: dict[str, str], log: Path) -> None:
        self.name = name
        self.restarts = -1
        self.due: float | None = 0.0  #: when to start it, by the monotonic clock; None while it runs
        self._command = command
        self._environ = environ
        self._log = log
        self._failures = 0
        self._popen: subprocess.Popen[bytes] | None = None
        self._started = 0.0

    @property
    def running(self) -> bool:
        return self._popen is not None

    @property
    def is_due(self) -> bool:
        return self.due is not None and self.due <= time.monotonic()

    @property
    def process(self) -> Process | None:
        return None if self._popen is None else Process.of(self._popen.pid)

    def start(self, *options: str, pass_fds: tuple[int, ...] = ()) -> int:
        """Start it; a pidfd that tells when it ends."""
        if self._log.exists() and self._log.stat().st_size > MAX_LOG:
            os.replace(self._log, self._log.with_suffix(".log.1"))
        with self._log.open("ab") as log:
            self._popen = subprocess.Popen(
                [*self._command, *options],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self._environ,
                pass_fds=pass_fds,
            )
        self.due = None
        self.restarts += 1
        self._started = time.monotonic()
        return os.pidfd_open(self._popen.pid)

    def collect(self, *, timeout: float = END_TIMEOUT) -> int:
        """Its exit code once it has ended. It is killed if it does not within `timeout` seconds."""
        assert self._popen is not None
        popen, self._popen = self._popen, None
        try:
            code = popen.wait(timeout)
        except subprocess.TimeoutExpired:
            popen.kill()
            code = popen.wait()
        if popen.stdin is not None:
            popen.stdin.close()
        if time.monotonic() - self._started > HEALTHY_AFTER:
            self._failures = 0
        self.postpone()
        return code

    def postpone(self) -> None:
        """Set when to start it again after a failure: at once for the first one in a row."""
        self._failures += 1
        pause = 0.0 if self._failures < 2 else min(LONGEST_PAUSE, 0.25 * 2 ** min(self._failures, 10))
        self.due = time.monotonic() + pause

    def tell(self, word: str) -> None:
        if self._popen is not None and self._popen.stdin is not None:
            try:
                os.write(self._popen.stdin.fileno(), f"{word}\n".encode())
            except BrokenPipeError:
                note(f"{self.name} ended before it was told to {word}")

    def send(self, signum: signal.Signals) -> None:
        if self._popen is not None:
            self._popen.send_signal(signum)


class Supervisor:
    """The event loop. Sources: the ends of the children, the agent's word that it is ready, signals, our creator."""

    def __init__(
        self,
        layout: Layout,
        listener: socket.socket,
        database: str,
        creator: int | None,
        started: Callable[[dict[str, Any]], None],
    ) -> None:
        """`started` is called once, with where it is or with what failed."""
        host, port = listener.getsockname()
        self.url = f"http://{host}:{port}"
        self.failed = False
        self._tell_started = started
        self._layout = layout
        self._listener = listener
        self._database = database
        self._was_ready = False
        self._ready: dict[str, Any] | None = None  #: what the agent said, unless we are stopping
        self._stop_by: float | None = None
        self._selector = selectors.DefaultSelector()
        python = [sys.executable, "-P", "-m"]
        environ = {k: v for k, v in os.environ.items() if k not in ("BALSAM_URL", "BALSAM_TOKEN", "BALSAM_SITE")}
        environ["BALSAM_HOME"] = str(layout.home)
        service = ["balsam_exec.server", "--until-eof", "--fd", str(listener.fileno())]
        agent = ["balsam_exec.site", str(layout.site), "--create", SITE_NAME, "--until-eof"]
        bootstrap = str(layout.bootstrap_file)
        self._service = Child(
            "service",
            [*python, *service, "--bootstrap", bootstrap],
            {**environ, "BALSAM_SERVER_DATABASE_URL": database},  # it may hold a password, and arguments are public
            layout.logs["service"],
        )
        self._agent = Child(
            "agent",
            [*python, *agent, "--credentials", bootstrap],
            {**environ, "BALSAM_URL": self.url},
            layout.logs["agent"],
        )
        self._listen_to_signals()
        if creator is not None:
            self._listen_to_creator(creator)

    def run(self) -> None:
        """Until told to stop; then everything has ended in order: allocations, agent, service."""
        while not self._over():
            self._start_due()
            for key, _ in self._selector.select(self._patience()):
                key.data()
        if self._agent.running:
            self._agent.collect(timeout=0)
        if self._service.running:
            self._service.send(signal.SIGTERM)
            self._service.collect()
        self._layout.state_file.unlink(missing_ok=True)

    def stop(self) -> None:
        """Begin to end: the agent ends the allocations, then itself. A second call does not wait for that."""
        if self._stop_by is None:
            note("stopping")
            self._agent.tell("drain")
            self._stop_by = time.monotonic() + DRAIN_TIMEOUT
            self._ready = None
            self._write_state()
        else:
            self._stop_by = time.monotonic()

    def _over(self) -> bool:
        return self._stop_by is not None and (not self._agent.running or time.monotonic() >= self._stop_by)

    def _patience(self) -> float | None:
        times = [t for t in (self._service.due, self._agent.due, self._stop_by) if t is not None]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _start_due(self) -> None:
        if self.failed:
            return
        if self._service.is_due:
            self._start(self._service, pass_fds=(self._listener.fileno(),))
        if self._agent.is_due and self._stop_by is None:
            reader, writer = os.pipe()
            self._start(self._agent, "--ready-fd", str(writer), pass_fds=(writer,))
            os.close(writer)
            self._selector.register(reader, selectors.EVENT_READ, lambda: self._agent_ready(reader))

    def _start(self, child: Child, *options: str, pass_fds: tuple[int, ...]) -> None:
        try:
            pidfd = child.start(*options, pass_fds=pass_fds)
        except OSError as error:  # too many processes, no memory: both may pass
            note(f"cannot start the {child.name}: {error}")
            child.postpone()
            return
        self._selector.register(pidfd, selectors.EVENT_READ, lambda: self._ended(child, pidfd))
        self._write_state()

    def _ended(self, child: Child, pidfd: int) -> None:
        self._selector.unregister(pidfd)
        os.close(pidfd)
        code = child.collect()
        note(f"{child.name} ended with {code}")
        if not self._was_ready and self._stop_by is None:
            self.failed = True
            error = f"the {child.name} ended with {code} while it was starting"
            self._tell_started({"part": child.name, "error": error, "log": self._layout.log_tail(child.name)})
            self.stop()
        self._write_state()

    def _agent_ready(self, reader: int) -> None:
        self._selector.unregister(reader)
        with os.fdopen(reader) as file:
            line = file.readline()
        if not line or self._stop_by is not None:  # it ended before, or too late
            return
        self._ready = json.loads(line)
        self._write_state()
        if not self._was_ready:
            self._was_ready = True
            self._tell_started({"url": self.url, **json.loads(line)})

    def _write_state(self) -> None:
        state: dict[str, Any] = {"url": self.url, "database": without_password(self._database), "ready": self._ready}
        processes = {"supervisor": Process.of(os.getpid())}
        for child in (self._service, self._agent):
            processes[child.name] = child.process
            state[f"{child.name}_restarts"] = child.restarts
        for name, process in processes.items():
            state[name] = None if process is None else {"pid": process.pid, "start": process.start}
        try:
            write_json(self._layout.state_file, state)
        except OSError as error:  # the disk is full; others can do without
            note(f"cannot write {self._layout.state_file}: {error}")

    def _listen_to_signals(self) -> None:
        receiver, sender = socket.socketpair()
        for end in (receiver, sender):
            end.setblocking(False)
        signal.set_wakeup_fd(sender.detach(), warn_on_full_buffer=False)
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, lambda *_: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

        def received() -> None:
            receiver.recv(100)
            self.stop()

        self._selector.register(receiver, selectors.EVENT_READ, received)

    def _listen_to_creator(self, creator: int) -> None:
        """End with it: when it closes our standard input, and when it dies while a child of its keeps that open."""
        process = Process.of(creator)
        pidfd = process.open() if process and os.getppid() == creator else None

        def gone() -> None:
            if not sources:  # both told of it at the same time
                return
            while sources:
                self._selector.unregister(sources.pop())
            self.stop()

        sources = [sys.stdin.fileno(), *([] if pidfd is None else [pidfd])]
        for source in sources:
            self._selector.register(source, selectors.EVENT_READ, gone)


def note(text: str) -> None:
    with suppress(OSError):  # a full disk must not end us
        print(time.strftime("%Y-%m-%d %H:%M:%S"), text, file=sys.stderr, flush=True)


def announce(message: dict[str, Any]) -> None:
    """Tell our creator, who listens for one line and no more."""
    try:
        print(json.dumps(message), flush=True)
    except BrokenPipeError:
        note("nobody waits for us")
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)


def end_leftovers(layout: Layout) -> None:
    """Wait for the children of a supervisor that was killed: two services on one database must not be."""
    state = read_json(layout.state_file)
    for part in ("agent", "service"):
        process = recorded(state, part)
        if process is not None and process.alive and not process.wait(END_TIMEOUT):
            process.end(END_TIMEOUT)


def bind(layout: Layout, config: dict[str, Any]) -> socket.socket:
    """The service's socket, on the port it had before if that is free: launchers that still run know that one."""
    port = config.get("port", 0)
    try:
        listener = socket.create_server(("127.0.0.1", port), backlog=BACKLOG)
    except OSError as error:
        note(f"port {port}: {error.strerror}; taking another one")
        listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    write_json(layout.config_file, {**config, "port": listener.getsockname()[1]})
    return listener


def lock(layout: Layout) -> IO[str]:
    """What one supervisor of a deployment at a time can have; waits for one that is ending. Raises BlockingIOError."""
    file = layout.supervisor_lock.open("w")
    serving = bool(read_json(layout.state_file).get("ready"))
    fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if serving else 0))
    return file


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="balsam_exec.embedded", description="Supervise a deployment.")
    parser.add_argument("home", type=Path)
    parser.add_argument(
        "--temporary", type=int, metavar="PID", dest="creator", help="end with PID or the standard input"
    )
    parser.add_argument("--remove", action="store_true", help="remove HOME at the end")
    parser.add_argument("--up-lock", type=int, help="a locked file to close when ready")
    options = parser.parse_args(argv)
    if options.creator is None and os.fork():
        os._exit(0)  # a persistent one is nobody's child, and leaves nobody a zombie
    layout = Layout(options.home)
    layout.create()
    try:
        held = lock(layout)
    except BlockingIOError:
        announce({"part": "supervisor", "error": f"another supervisor runs at {layout.home}", "log": ""})
        return 1
    end_leftovers(layout)
    config = read_json(layout.config_file)
    database = config.get("database") or layout.default_database

    def started(message: dict[str, Any]) -> None:
        announce(message)
        if options.up_lock is not None and "error" not in message:
            os.close(options.up_lock)  # else who tries again waits until we have ended

    with held, bind(layout, config) as listener:
        supervisor = Supervisor(layout, listener, database, options.creator, started)
        note(f"serving {supervisor.url}")
        supervisor.run()
    if options.remove:
        shutil.rmtree(layout.home, ignore_errors=True)
    return 1 if supervisor.failed else 0
