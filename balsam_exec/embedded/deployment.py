"""Starting, finding and ending a deployment."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from balsam_exec.embedded.layout import Layout, read_json, recorded, without_password, write_json
from balsam_exec.model.errors import BalsamError, Conflict

if TYPE_CHECKING:
    from balsam_exec.client.service import Service

START_TIMEOUT = 60.0
#: Longer than the supervisor itself gives to the drain of the allocations and to the end of its children.
STOP_TIMEOUT = 90.0
#: Seconds that what a killed supervisor left behind has to end.
LEFTOVER_GRACE = 10.0


class DeploymentFailed(BalsamError):
    """A deployment did not come up, or not in time; the message ends with the log of the part that failed."""

    code = "deployment_failed"


class Deployment:
    """A running deployment: service, local site and agent, all of this user and on this machine.

        with Deployment.start(temporary=True) as deployment:
            deployment.service().sites()

    A persistent one (in `home`, by default `$BALSAM_HOME`) goes on without this process until `stop` or `balsam down`.
    A temporary one ends with `stop` or with this process, however that ends, its allocations too. What it did stays in
    `home`; without a `home` it lives in a directory of its own that is then gone.
    """

    def __init__(
        self,
        layout: Layout,
        state: dict[str, Any],
        *,
        started: bool = True,
        supervisor: subprocess.Popen[str] | None = None,
        removes: bool = False,
    ) -> None:
        self.home = layout.home
        self.url: str = state["url"]
        self.site_id: int = state["site_id"]
        self.site: str = state["site"]  #: the name of its site
        #: Whether `start` started it, rather than finding that it runs.
        self.started = started
        self._layout = layout
        self._supervisor = supervisor  #: of a temporary one
        self._removes = removes

    def __repr__(self) -> str:
        return f"Deployment({self.url!r}, home={str(self.home)!r})"

    @classmethod
    def start(
        cls,
        home: Path | None = None,
        *,
        database: str | None = None,
        temporary: bool = False,
        timeout: float = START_TIMEOUT,
    ) -> Self:
        """Start a deployment and wait until it serves; if it runs already, say where.

        `database` is an SQLAlchemy URL (sqlite:///..., postgresql+psycopg://...); a persistent deployment remembers it.
        Raises DeploymentFailed, and Conflict if it runs with another database.
        """
        if temporary:
            return cls._start_temporary(home, database, timeout)
        layout = Layout(home or default_home())
        layout.create()
        with _starting(layout) as up_lock:
            state = running_state(layout)
            if state:
                _check_database(layout, state, database)
                found = cls(layout, {"url": state["url"], **state["ready"]}, started=False)
                found._save_credentials()
                return found
            if database is not None:
                write_json(layout.config_file, {**read_json(layout.config_file), "database": database})
            options = ["--up-lock", str(up_lock)]
            process = _spawn(layout, options, stdin=subprocess.DEVNULL, pass_fds=(up_lock,))
            process.wait()  # it forks, so as to be nobody's child
            started = cls(layout, _wait_started(layout, process, timeout))
        started._save_credentials()
        return started

    @classmethod
    def _start_temporary(cls, home: Path | None, database: str | None, timeout: float) -> Self:
        layout = Layout(home or Path(tempfile.mkdtemp(prefix="balsam-")))
        options = ["--temporary", str(os.getpid()), *(["--remove"] if home is None else [])]
        process = None
        try:
            layout.create()
            if database is not None:
                write_json(layout.config_file, {"database": database})
            process = _spawn(layout, options, stdin=subprocess.PIPE)
            started = cls(layout, _wait_started(layout, process, timeout), supervisor=process, removes=home is None)
        except BaseException:
            if process is not None:
                _end(process)
            if home is None:
                shutil.rmtree(layout.home, ignore_errors=True)
            raise
        started._save_credentials()
        return started

    def service(self) -> Service:
        """A new client of the deployment's service, with its site as the default."""
        from balsam_exec.client.service import Service  # the supervisor does not need it

        return Service(self.url, self.token, default_site=self.site)

    @property
    def token(self) -> str:
        token: str = read_json(self._layout.bootstrap_file)["token"]
        return token

    @property
    def temporary(self) -> bool:
        return self._supervisor is not None

    def stop(self) -> None:
        """End it: allocations are drained (their jobs may restart), then agent and service. Harmless when repeated."""
        if self._supervisor is None:
            stop(self.home)
        elif self._supervisor.returncode is None:
            _end(self._supervisor)
            state = read_json(self._layout.state_file)
            if state:  # it was killed
                _end_leftovers(self._layout, state)
            if self._removes:
                shutil.rmtree(self.home, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _save_credentials(self) -> None:
        """Make this the service that commands and programs of the user find."""
        from pydantic import SecretStr

        from balsam_exec.client.config import Credentials, save_credentials

        credentials = Credentials(url=self.url, token=SecretStr(self.token), site=self.site)
        save_credentials(credentials, {"BALSAM_HOME": str(self.home)})


def default_home() -> Path:
    from balsam_exec.client.config import home

    return home()


def running_state(layout: Layout) -> dict[str, Any]:
    """What the supervisor noted, {} when none is alive and ready."""
    state = read_json(layout.state_file)
    supervisor = recorded(state, "supervisor")
    return state if supervisor and supervisor.alive and state.get("ready") else {}


def stop(home: Path) -> bool:
    """End the persistent deployment at `home`; whether there was one. Raises DeploymentFailed if it does not end."""
    layout = Layout(home)
    state = read_json(layout.state_file)
    supervisor = recorded(state, "supervisor")
    was_up = supervisor is not None and supervisor.send(signal.SIGTERM)
    if was_up and supervisor is not None and not supervisor.wait(STOP_TIMEOUT):
        raise DeploymentFailed(f"the supervisor (pid {supervisor.pid}) does not end\n{layout.log_tail('supervisor')}")
    if not was_up:
        _end_leftovers(layout, state)
    return was_up


def _end_leftovers(layout: Layout, state: dict[str, Any]) -> None:
    """What a supervisor that was killed could not end: its allocations; its children end by themselves, soon."""
    if layout.site.exists():
        from balsam_exec.platform.schedulers.local import end_all

        end_all(layout.site / "qsubmit", LEFTOVER_GRACE)
    for part in ("agent", "service"):
        process = recorded(state, part)
        if process is not None and not process.wait(LEFTOVER_GRACE):
            process.end(LEFTOVER_GRACE)


@contextmanager
def _starting(layout: Layout) -> Iterator[int]:
    """Keep others from starting the deployment, also by waiting until one that is being started is ready or has failed.

    The descriptor holds the lock; it goes on in the supervisor, which closes it when it is ready.
    """
    descriptor = os.open(layout.up_lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _check_database(layout: Layout, state: dict[str, Any], database: str | None) -> None:
    used = read_json(layout.config_file).get("database") or layout.default_database
    if database is not None and database != used:
        raise Conflict(
            f"it is up with {without_password(used)}: `balsam down` before you start it with another database"
        )


def _spawn(layout: Layout, options: list[str], *, stdin: int, pass_fds: tuple[int, ...] = ()) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "balsam_exec.embedded", str(layout.home), *options]
    with layout.logs["supervisor"].open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=log,
            pass_fds=pass_fds,
            start_new_session=True,  # Ctrl-C in the terminal is for its creator, who decides what becomes of it
            text=True,
        )


def _wait_started(layout: Layout, process: subprocess.Popen[str], timeout: float) -> dict[str, Any]:
    """What the supervisor says when all is ready. Raises DeploymentFailed; then it is on its way out."""
    assert process.stdout is not None
    with process.stdout as said:
        ready, _, _ = select.select([said], [], [], timeout)
        line = said.readline() if ready else ""
    if not line:
        what = "the supervisor ended" if ready else f"it is not ready after {timeout:.0f} s"
        logs = "\n".join(f"{part}.log: {layout.log_tail(part)}" for part in layout.logs)
        stop(layout.home)
        raise DeploymentFailed(f"{what}\n{logs}")
    message: dict[str, Any] = json.loads(line)
    if "error" in message:
        raise DeploymentFailed(f"{message['error']}\n{message['log']}".rstrip())
    return message


def _end(supervisor: subprocess.Popen[str]) -> None:
    """End a temporary deployment's supervisor, waiting for it."""
    if supervisor.stdin is not None:
        supervisor.stdin.close()
    try:
        supervisor.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        supervisor.kill()
        supervisor.wait()
