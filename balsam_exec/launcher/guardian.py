"""Nothing outlives a launcher, whichever of its processes is killed, and with SIGKILL at that.

    guardian (the process the batch system starts and knows) -> guardian -> launcher proper -> jobs

A guardian hands on signals and adopts, as "child subreaper", every process below that loses its parent, whatever
session or environment it has made for itself. When what it guards has ended, it kills all that is left and exits with
its code. The launcher holds a pipe to each guardian and ends its jobs at once when one of them is gone; that is why
there are two: one is left to clear away what the dead one had adopted. All are in different sessions, so no signal to a
process group reaches more than one. What Slurm's srun has started on other nodes ends with the srun.

A parent-death signal would reach only direct children, and setting one takes a preexec_fn, which costs us vfork.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from balsam_exec.platform.processes import Process, adopt_orphans

if TYPE_CHECKING:
    import psutil

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
#: Seconds that Slurm's srun has to kill its tasks on other nodes, before it is killed itself and they live on.
_PATIENCE = 5.0


def guarded(launch: Callable[[Sequence[int]], int]) -> int:
    """Run `launch(pipes)` below two guardians; each pipe becomes readable when a guardian is gone. Returns its exit
    code, in each of the processes."""
    return _guard(lambda first: _guard(lambda second: launch((first, second))))


def _guard(work: Callable[[int], int]) -> int:
    """Run `work(pipe)` in a forked process, and be its guardian."""
    adopt_orphans()
    reader, writer = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # until there is somebody to hand them to
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.setsid()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        return work(reader)
    os.close(reader)
    for signum in _SIGNALS:
        signal.signal(signum, lambda number, _: _hand_on(child, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    code = _wait_for(child)
    _kill_descendants()
    return code


def _hand_on(child: int, signum: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(child, signum)


def _wait_for(child: int) -> int:
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _kill_descendants() -> None:
    """Until none is left: the children of whatever dies become ours."""
    import psutil  # only now, so that the guardian stays small

    this = psutil.Process()
    left = this.children(recursive=True)
    _end_sruns(left)
    while left:
        for process in left:
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                process.kill()
        with suppress(ChildProcessError):
            os.wait()
        left = this.children(recursive=True)


def _end_sruns(processes: Sequence[psutil.Process]) -> None:
    """What they have started on other nodes is killed when they are told to end."""
    import psutil

    sruns = [process for process in processes if Process(process.pid, 0).is_srun]
    for srun in sruns:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            srun.terminate()
    psutil.wait_procs(sruns, timeout=_PATIENCE)
