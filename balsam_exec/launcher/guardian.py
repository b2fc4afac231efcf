"""Nothing outlives a launcher, not even one that is killed with SIGKILL.

The process that the batch system starts and knows becomes the guardian: it forks the launcher proper, hands on signals,
and adopts (as "child subreaper") every process below that loses its parent, whatever session or environment it has made
for itself. When the launcher ends, for whatever reason, the guardian kills all that is left and exits with its code.
When the guardian is killed, the launcher, in a session of its own, sees its pipe close, and ends its jobs at once.

A parent-death signal would reach only direct children, and setting one takes a preexec_fn, which costs us vfork.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from contextlib import suppress

_PR_SET_CHILD_SUBREAPER = 36


def guard(launch: Callable[[int], int]) -> int:
    """Run `launch(pipe)` in a forked process; `pipe` becomes readable when this one is gone. Returns its exit code."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "cannot become a subreaper")
    reader, writer = os.pipe()
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # until there is somebody to hand them to
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.setsid()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        return launch(reader)
    os.close(reader)
    for signum in signals:
        signal.signal(signum, lambda number, _: _hand_on(child, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
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
    while left := this.children(recursive=True):
        for process in left:
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                process.kill()
        with suppress(ChildProcessError):
            os.wait()
