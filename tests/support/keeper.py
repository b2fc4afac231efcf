"""Starts programs for whoever holds the other end of its standard input; ends them with it, and all they have started.

Some programs (slurmstepd) detach themselves from what starts them and outlive it: this process adopts them, so that
nothing is left even when pytest is killed; in the end it removes their directory. One line of JSON asks for a program:
{"argv": [...], "log": PATH}; one line with its pid answers. Only the standard library: `python keeper.py DIRECTORY`.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36


def descendants() -> list[int]:
    """The living processes below this one."""
    children: dict[int, list[int]] = {}
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            try:
                state, parent = (directory / "stat").read_text().rpartition(") ")[2].split()[:2]
            except OSError:  # gone meanwhile
                continue
            if state != "Z":
                children.setdefault(int(parent), []).append(int(directory.name))
    found, pending = [], [os.getpid()]
    while pending:
        below = children.get(pending.pop(), [])
        found += below
        pending += below
    return found


def kill_all(timeout: float = 10) -> None:
    """The children of what dies become ours, so look again until none is left."""
    deadline = time.monotonic() + timeout
    while (left := descendants()) and time.monotonic() < deadline:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.01)


def collect(*_: object) -> None:
    """Adopted children are of no interest when they have ended, but would stay as zombies."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def main() -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "cannot become a subreaper")
    signal.signal(signal.SIGCHLD, collect)
    for line in sys.stdin:
        request = json.loads(line)
        with open(request["log"], "ab") as log:
            child = subprocess.Popen(
                request["argv"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        print(child.pid, flush=True)
    kill_all()
    shutil.rmtree(sys.argv[1])


if __name__ == "__main__":
    main()
