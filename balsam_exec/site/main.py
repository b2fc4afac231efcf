"""The agent as a process: arguments, signals, and the supervisor's words on the standard input.

A supervisor starts it with `--until-eof`: it ends when its standard input does, and the line "drain" there ends the
site's allocations first. `--ready-fd` is where it then says, in one line of JSON, that it serves its site.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from balsam_exec.client.config import load_credentials
from balsam_exec.client.service import Service
from balsam_exec.model.errors import BalsamError
from balsam_exec.model.sites import SiteRecord
from balsam_exec.platform.settings import SiteDirectory
from balsam_exec.site.agent import Agent
from balsam_exec.site.identity import this_process
from balsam_exec.site.lease import lock_site

log = logging.getLogger(__name__)

#: The signal to end the allocations, then itself.
DRAIN = signal.SIGUSR1
#: Seconds that a request is tried before the agent says that the service is away; it then goes on trying.
_DEADLINE = 10.0
#: Seconds for allocations to end when draining, beyond the grace that their processes have.
DRAIN_MARGIN = 10.0


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    log_to_stderr(options.log_level)
    try:
        return serve(
            options.directory,
            create=options.create,
            credentials=options.credentials,
            until_eof=options.until_eof,
            ready_fd=options.ready_fd,
        )
    except BalsamError as error:
        log.error("%s", error)
        return 1


def log_to_stderr(level: str) -> None:
    line = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=level.upper(), format=line, stream=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="balsam_exec.site", description="Serve a site.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--create", metavar="NAME", help="make DIRECTORY a site of this name if it is not one yet")
    parser.add_argument("--credentials", type=Path, help="the token for $BALSAM_URL, read once the service is up")
    parser.add_argument("--until-eof", action="store_true", help="end with the standard input")
    parser.add_argument("--ready-fd", type=int, help="write a line to this descriptor when the site is served")
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    return parser


def serve(
    directory: Path,
    *,
    create: str | None = None,
    credentials: Path | None = None,
    until_eof: bool = False,
    ready_fd: int | None = None,
) -> int:
    """Serve the site at `directory` until told to stop; the exit code. Raises BalsamError for what cannot work."""
    site = SiteDirectory(directory)
    if create is not None:
        site.create(create)
    settings = site.settings()
    control = _Control(until_eof)
    if ready_fd is not None:
        os.set_inheritable(ready_fd, False)

    def ready(record: SiteRecord) -> None:
        if ready_fd is not None:
            with os.fdopen(ready_fd, "w") as file:
                file.write(json.dumps({"site_id": record.id, "site": record.name}) + "\n")

    me = this_process()
    with lock_site(site, me):
        agent = Agent(
            lambda: _connect(credentials), site, me, register=create is not None, on_ready=ready, on_error=control.fail
        )
        agent.start()
        drain = control.wait(agent.reload)
        agent.stop(settings.cancel_grace_sec + DRAIN_MARGIN if drain else None)
    if control.error is not None:
        raise control.error
    return 0


def _connect(credentials: Path | None) -> Service:
    """The service this process is to use; launchers inherit the choice through the environment."""
    if credentials is not None:
        # The service writes the file before it answers. Its socket listens already, so that we just wait.
        Service(os.environ["BALSAM_URL"]).health(deadline=math.inf)
        os.environ["BALSAM_TOKEN"] = json.loads(credentials.read_text())["token"]
    found = load_credentials()
    token = found.token.get_secret_value()
    os.environ.update(found.variables())
    return Service(found.url, token, deadline=_DEADLINE)


class _Control:
    """What may end the agent: a signal, the supervisor's word or end, an error of its own."""

    def __init__(self, until_eof: bool) -> None:
        self.error: BalsamError | None = None
        self._failed = os.eventfd(0)
        self._signals, wakeup = socket.socketpair()
        wakeup.setblocking(False)
        signal.set_wakeup_fd(wakeup.detach(), warn_on_full_buffer=False)
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, DRAIN):
            signal.signal(signum, lambda *_: None)
        self._stdin = sys.stdin.fileno() if until_eof else None

    def fail(self, error: BalsamError) -> None:
        self.error = error
        os.eventfd_write(self._failed, 1)

    def wait(self, reload: Callable[[], str]) -> bool:
        """Return when it is time to end: whether the allocations are to end as well. On SIGHUP, `reload`."""
        sources = [self._failed, self._signals, *([] if self._stdin is None else [self._stdin])]
        while True:
            ready, _, _ = select.select(sources, [], [])
            if self._signals not in ready:
                return self._stdin in ready and os.read(sys.stdin.fileno(), 100).startswith(b"drain")
            for signum in self._signals.recv(100):
                if signum != signal.SIGHUP:
                    return signum == DRAIN
            _try(reload)


def _try(reload: Callable[[], str]) -> None:
    try:
        log.info("SIGHUP: %s", reload())
    except BalsamError as error:
        log.error("going on with the settings as they were: %s", error)
