"""The allocation that this process is in, as its batch scheduler tells: the hosts, and which of them is this one."""

from __future__ import annotations

import os
import socket
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from balsam_exec.model.errors import ConfigurationError

#: Seconds that a scheduler's command has to expand a list of hosts.
_TIMEOUT = 30.0
#: The variables that hold the id of an allocation at its scheduler.
_IDS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "FLUX_JOB_ID")


@dataclass(frozen=True, slots=True)
class Allocation:
    """The hosts in the scheduler's order, by the names that its launchers know them by."""

    hosts: tuple[str, ...]
    here: str | None  #: the one that this process runs on; None: none of them, as on a launch node
    scheduler_id: str | None = None  #: None: there is no batch scheduler, and its launchers know of no hosts

    @property
    def is_scheduled(self) -> bool:
        """Whether a batch scheduler gave it, so that its hosts can be named to MPI launchers."""
        return self.scheduler_id is not None


def find_allocation(environ: Mapping[str, str] = os.environ, machine: str | None = None) -> Allocation:
    """The allocation of a process with this environment on this machine; the machine alone where no scheduler speaks
    of one.

    Raises ConfigurationError if the scheduler speaks of one and its hosts cannot be found out.
    """
    return part_of_allocation(_hosts(environ), environ, machine)


def part_of_allocation(
    hosts: Sequence[str], environ: Mapping[str, str] = os.environ, machine: str | None = None
) -> Allocation:
    """What these hosts are of an allocation; none: the one of this process."""
    machine = machine or socket.gethostname()
    scheduler_id = next((environ[name] for name in _IDS if environ.get(name)), None)
    own = environ.get("SLURMD_NODENAME", machine)
    if not hosts or scheduler_id is None:
        return Allocation((own,), own, scheduler_id)
    return Allocation(tuple(hosts), _among(hosts, own), scheduler_id)


def hosts_in(lines: Sequence[str]) -> tuple[str, ...]:
    """The hosts of a file that names each once or once for each of its slots, in their order.

    The first is left out where it has a single slot and all others have more: programs are only launched from it (so
    LSF lists the batch node of Summit and its kin).
    """
    slots = Counter(name for line in lines if (name := line.strip()))
    first, *others = slots or [""]
    only_launches = slots[first] == 1 and others and all(slots[host] > 1 for host in others)
    return tuple(others if only_launches else slots)


def _hosts(environ: Mapping[str, str]) -> tuple[str, ...]:
    if listed := environ.get("SLURM_JOB_NODELIST"):
        if not set("[],") & set(listed):
            return (listed,)
        return tuple(_output("scontrol", "show", "hostnames", listed).split())
    if path := environ.get("PBS_NODEFILE"):
        return tuple(dict.fromkeys(_lines(path)))
    if path := environ.get("LSB_DJOB_HOSTFILE"):
        return hosts_in(_lines(path))
    if environ.get("FLUX_JOB_ID"):
        return tuple(_output("flux", "hostlist", "--expand", "local").split())
    return ()


def _among(hosts: Sequence[str], own: str) -> str | None:
    """Which of the hosts has this name, with or without its domain."""
    short = own.partition(".")[0]
    return own if own in hosts else next((host for host in hosts if host.partition(".")[0] == short), None)


def _lines(path: str) -> list[str]:
    try:
        return [name for line in Path(path).read_text().splitlines() if (name := line.strip())]
    except OSError as error:
        raise ConfigurationError(f"cannot read the hosts of this allocation, {path}: {error.strerror}") from error


def _output(*words: str) -> str:
    try:
        return subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        why = (getattr(error, "stderr", None) or str(error)).strip()
        raise ConfigurationError(f"cannot find out the hosts of this allocation: {' '.join(words)}: {why}") from error
