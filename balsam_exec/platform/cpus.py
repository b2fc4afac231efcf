"""The cores of this machine, and which processes may use them."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from balsam_exec.model.errors import ConfigurationError

#: The ids of the hardware threads of one core; what the kernel calls CPUs.
Core = tuple[int, ...]


def cores_of(allowed: Collection[int], system: Path = Path("/sys/devices/system/cpu")) -> tuple[Core, ...]:
    """The cores that these CPUs are, each with those of its hardware threads that are among them."""
    found: dict[str, list[int]] = {}
    for cpu in sorted(allowed):
        try:
            siblings = (system / f"cpu{cpu}/topology/thread_siblings_list").read_text()
        except OSError:  # a container that hides it
            siblings = f"only {cpu}"
        found.setdefault(siblings, []).append(cpu)
    return tuple(map(tuple, found.values()))


@contextmanager
def confined(cpus: Collection[int]) -> Iterator[None]:
    """What this thread starts meanwhile may use only these CPUs; all that we may where there are none.

    A child inherits the affinity of the thread that forks it, so it is right from the first instruction on, at the
    price of two system calls, and without what would cost us vfork (preexec_fn) or another exec (taskset). Raises
    ConfigurationError if we may not use them.
    """
    if not cpus:
        yield
        return
    before = os.sched_getaffinity(0)
    _set(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def confine(pid: int, cpus: Collection[int]) -> None:
    """Have all threads of a process of ours use only these CPUs from now on; those that it starts inherit it. Nothing
    happens where it has ended. Raises ConfigurationError if we may not use them."""
    with suppress(FileNotFoundError, ProcessLookupError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            _set(int(thread), cpus)


def _set(thread: int, cpus: Collection[int]) -> None:
    try:
        os.sched_setaffinity(thread, cpus)
    except ProcessLookupError:
        raise
    except OSError as error:
        numbers = ", ".join(map(str, sorted(cpus)))
        raise ConfigurationError(f"the CPUs {numbers} are not ours to use any more: {error.strerror}") from error
