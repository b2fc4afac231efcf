"""Agents in the background: starting one, telling it something, and waiting for its end."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from balsam_exec.model.errors import BalsamError, ConfigurationError
from balsam_exec.model.sites import AgentProcess
from balsam_exec.platform.settings import SiteDirectory
from balsam_exec.site.identity import local
from balsam_exec.site.lease import recorded_agent
from balsam_exec.site.main import DRAIN, DRAIN_MARGIN

#: A log that is longer, in bytes, is set aside when an agent starts.
MAX_LOG = 16 * 1024 * 1024
#: Lines of the log that tell why an agent does not serve its site.
_TAIL = 10
#: Seconds for an agent that was told to stop.
_STOP_TIMEOUT = 30.0


class NotServing(BalsamError):
    """An agent was started and does not serve its site (yet). The message says why, with the end of its log."""


def start(site: SiteDirectory, timeout: float) -> AgentProcess:
    """Start an agent in a session of its own; return when it serves the site. Raises NotServing if it ends before, or
    after `timeout` seconds: it goes on trying then."""
    site.log.mkdir(exist_ok=True)
    log_file = site.log / "agent.log"
    begin = _set_aside(log_file)
    reader, writer = os.pipe()
    command = [sys.executable, "-P", "-m", "balsam_exec.site", str(site.path), "--ready-fd", str(writer)]
    with log_file.open("ab") as log, os.fdopen(reader) as ready:
        popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[writer],
            cwd=site.path,
            start_new_session=True,  # it outlives the terminal
        )
        os.close(writer)
        heard = bool(select.select([ready], [], [], timeout)[0])
        serves = heard and bool(ready.readline())
    if heard and not serves:
        raise NotServing(f"the agent ended with {popen.wait()}:\n{_since(log_file, begin)}")
    popen.returncode = 0  # it is nobody's child any more, soon
    agent = recorded_agent(site)
    if agent is None or not serves:
        told = _since(log_file, begin)
        raise NotServing(f"the agent (pid {popen.pid}) does not serve the site yet, and goes on trying:\n{told}")
    return agent


def _set_aside(log_file: Path) -> int:
    """Where in the log the next agent begins to write."""
    size = log_file.stat().st_size if log_file.exists() else 0
    if size <= MAX_LOG:
        return size
    os.replace(log_file, log_file.with_suffix(".log.1"))
    return 0


def _since(log_file: Path, begin: int) -> str:
    with log_file.open("rb") as file:
        file.seek(begin)
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-_TAIL:])


def running(site: SiteDirectory) -> AgentProcess | None:
    """The agent that serves the directory, as far as can be told from here; one elsewhere may have been killed."""
    agent = recorded_agent(site)
    process = None if agent is None else local(agent)
    if process is not None:
        return agent if process.alive else None
    return agent if agent is not None and agent.hostname != socket.gethostname() else None


def stop(site: SiteDirectory, *, drain: bool) -> AgentProcess | None:
    """End the agent that this machine runs for the site, with `drain` the allocations first; None where there is none.

    Raises ConfigurationError where another machine runs it, BalsamError if it does not end.
    """
    agent = running(site)
    if agent is None:
        return None
    process = local(agent)
    if process is None:
        raise ConfigurationError(
            f"the agent of {site.path} runs on {agent.hostname} (pid {agent.pid}): "
            f"there, `balsam site stop {site.path}`"
        )
    timeout = _STOP_TIMEOUT + (site.settings().cancel_grace_sec + DRAIN_MARGIN if drain else 0.0)
    began = time.monotonic()
    if process.send(DRAIN if drain else signal.SIGTERM) and not process.wait(timeout):
        waited = time.monotonic() - began
        raise BalsamError(f"the agent (pid {agent.pid}) has not ended in {waited:.0f} s; its log: {site.log}/agent.log")
    return agent
