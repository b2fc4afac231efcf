"""Which process an agent is, and whether another one has surely ended."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from balsam_exec.model.base import now
from balsam_exec.model.sites import AgentProcess
from balsam_exec.platform.processes import Process


def this_process() -> AgentProcess:
    """This process, as others can tell it from all others."""
    process = Process.of(os.getpid())
    assert process is not None
    return AgentProcess(
        hostname=socket.gethostname(),
        pid=process.pid,
        start=process.start,
        machine=_machine(),
        started=now(),
    )


def _machine() -> str:
    """Where pids mean something: since the machine started, among those that see each other."""
    started = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{started}/{os.stat('/proc/self/ns/pid').st_ino}"


def local(agent: AgentProcess) -> Process | None:
    """The process of an agent, if it is one of those that can be seen from here."""
    return Process(agent.pid, agent.start) if agent.machine == _machine() else None


def has_ended(agent: AgentProcess) -> bool:
    """Whether it is known to be gone: it was on this machine, which does not have it, or has been started anew since.

    False where nobody can tell, from another machine or out of a container.
    """
    process = local(agent)
    if process is not None:
        return not process.alive
    boot, _, _ = _machine().partition("/")
    return agent.hostname == socket.gethostname() and not agent.machine.startswith(f"{boot}/")
