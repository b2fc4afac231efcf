"""How the end of a job is told: results, errors with the tail of its output, ways to die."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterable
from dataclasses import replace

from balsam_exec.apps.payload import dump_exception
from balsam_exec.launcher import worker
from balsam_exec.launcher.events import Outcome
from balsam_exec.model.base import storable
from balsam_exec.model.errors import BalsamError, PayloadError, TooLarge
from balsam_exec.model.jobs import Result
from balsam_exec.model.sessions import LeasedJob
from balsam_exec.model.states import JobState

#: A file that a job writes to, and how long it was before.
Output = tuple[str, int]

#: Of the output in an error, and of an error in an event, in bytes.
TAIL = 2000
_MAX_ERROR = 100_000

_HINTS = {
    signal.SIGKILL: "; perhaps it ran out of memory",
    signal.SIGSEGV: "; a crash in compiled code, its output may say where",
}

#: Of srun, whose exit code is 0 then as well.
_NODE_FAILURE = re.compile("^srun: error: (Node failure on .*)", re.MULTILINE)


def done(value: bytes | None = None, return_code: int | None = None) -> Outcome:
    data = {} if return_code is None else {"return_code": return_code}
    return Outcome(JobState.RUN_DONE, Result(ok=True, value=value, return_code=return_code), data)


def failed(reason: str, error: str, return_code: int | None = None, exception: bytes | None = None) -> Outcome:
    """`reason` is one of Result's: "exit", "exception", "died"."""
    error = storable(error)
    data: dict[str, object] = {"error": error[-TAIL:]}
    if return_code is not None:
        data["return_code"] = return_code
    result = Result(
        ok=False, error=error[-_MAX_ERROR:], reason=reason, return_code=return_code, exception=exception or None
    )
    return Outcome(JobState.RUN_ERROR, result, data)


def refused(problem: BalsamError) -> Outcome:
    """The job's app, arguments or result could not be handled; whoever waits for it gets this very error."""
    payload, _ = dump_exception(problem)
    return failed("exception", f"{type(problem).__name__}: {problem}", exception=payload)


def command_ended(return_code: int, *outputs: Output) -> Outcome:
    """`return_code` as of subprocess: minus the signal's number if one killed it.

    The error has the end of the first of `outputs` that grew.
    """
    if return_code == 0:
        return done(return_code=0)
    error = f"{how_it_ended(return_code)}\n{_last_words(outputs)}".strip()
    return failed("exit", error, return_code)


def ranks_ended(return_code: int, *outputs: Output) -> Outcome:
    """The same for a command whose ranks something has started for us."""
    return node_failure(*outputs) or command_ended(return_code, *outputs)


def node_failure(*outputs: Output) -> Outcome | None:
    """Of ranks that srun started, itself or for another MPI launcher: they were cut short with a node of theirs. None:
    nothing is said of that."""
    for output in outputs:
        if said := _NODE_FAILURE.search(tail(*output)):
            return Outcome(JobState.RUN_TIMEOUT, Result(ok=False, error=said[1]), {"error": said[1]})
    return None


def worker_died(return_code: int, *outputs: Output) -> Outcome:
    error = f"the process that ran the job died: {how_it_ended(return_code)}\n{_last_words(outputs)}".strip()
    return failed("died", error, return_code)


def answered(status: int, number: int, body: bytes, *outputs: Output) -> Outcome:
    """What a call came to, by the answer of the process that made it (worker.py)."""
    text = body[number if status == worker.RAISED else 0 :].decode("utf-8", "replace")
    match status:
        case worker.VALUE:
            return done(body)
        case worker.RAISED:
            return failed("exception", text, exception=body[:number])
        case worker.TOO_LARGE:
            return refused(TooLarge.entity("the result", number, int(text)))
        case worker.EXITED:
            return failed("exit", f"the app called sys.exit: exit code {number}\n{text}".strip(), number)
        case worker.CANNOT_RUN:
            return failed("exit", text)
        case worker.DIED:
            return worker_died(os.waitstatus_to_exitcode(number), *outputs)
        case _:
            return refused(PayloadError(text))


def on_rank(failure: Outcome, rank: int, ranks: int) -> Outcome:
    """The failure of a job, with the rank that it came from."""
    error = f"on rank {rank} of {ranks}:\n{failure.result.error}"
    told = failed(failure.result.reason, error, failure.result.return_code, failure.result.exception)
    return replace(told, data={**told.data, "rank": rank})


def output_files(job: LeasedJob) -> tuple[str, ...]:
    """The files of the workdir that the job writes: of its stderr and its stdout; one where they go together."""
    return (job.stdout,) if job.stderr in ("", job.stdout) else (job.stderr, job.stdout)


def how_it_ended(return_code: int) -> str:
    if return_code >= 0:
        return f"exit code {return_code}"
    try:
        number = signal.Signals(-return_code)
    except ValueError:
        return f"killed by signal {-return_code}"
    return f"killed by {number.name}{_HINTS.get(number, '')}"


def size(path: str) -> int:
    """Of a file that may not be there yet."""
    try:
        return os.path.getsize(path)
    except OSError:
        return 0


def _last_words(outputs: Iterable[Output]) -> str:
    return next(filter(None, (tail(*output) for output in outputs)), "")


def tail(path: str, start: int = 0) -> str:
    """The last of a file that was `start` bytes long before."""
    try:
        with open(path, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(start, end - TAIL))
            return file.read().decode("utf-8", "replace").strip()
    except OSError:
        return ""
