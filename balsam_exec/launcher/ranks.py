"""Python apps on several ranks: the same command line on each (rank.py), and one outcome of them all."""

from __future__ import annotations

import pickle
import shutil
import sys
from collections.abc import Callable, Container
from functools import partial
from pathlib import Path

from balsam_exec.apps import codec
from balsam_exec.launcher import outcomes, worker
from balsam_exec.launcher.commands import CommandRunner
from balsam_exec.launcher.events import Outcome
from balsam_exec.launcher.surroundings import Surroundings, in_shell
from balsam_exec.launcher.workers import NO_ARGUMENTS
from balsam_exec.model.apps import AppRecord, container_words
from balsam_exec.model.errors import BalsamError
from balsam_exec.model.sessions import LeasedJob

_RANK = Path(__file__).with_name("rank.py")


class RankRunner:
    """Starts Python apps on several ranks, through a command runner, which tells their end and kills them."""

    def __init__(self, commands: CommandRunner, directory: Path, session_id: int, limit: int) -> None:
        """`directory` is where calls and answers are passed; every node of the allocation sees it. `limit` is that of
        results, in bytes."""
        self._commands = commands
        self._session_id = session_id
        self._limit = limit
        self._directory = directory

    def start(self, job: LeasedJob, app: AppRecord, around: Surroundings, prefix: list[str]) -> None:
        """`prefix` are the words that start the ranks. Raises BalsamError or OSError if it cannot be started."""
        python = app.python_exe or sys.executable
        exchange = self._directory / f"{self._session_id}-{job.id}"
        exchange.mkdir(mode=0o700, parents=True)
        container = container_words(app.container)
        arguments = [str(exchange), str(job.ranks), str(self._limit), codec.__file__]
        words = [*prefix, *container, python, str(_RANK), *arguments]
        try:
            (exchange / "call").write_bytes(pickle.dumps((app.payload, job.arguments or NO_ARGUMENTS), protocol=4))
            self._commands.run(job, in_shell(around.preamble, words), around, partial(_conclude, exchange, job.ranks))
        except (BalsamError, OSError):
            shutil.rmtree(exchange, ignore_errors=True)
            raise


def sweep(directory: Path, living: Callable[[], Container[int]]) -> None:
    """Remove what launchers that were killed have left. `living` tells the sessions that are not over."""
    found = [(int(name.name.partition("-")[0]), name) for name in _entries(directory)]
    sessions = living() if found else ()
    for session_id, path in found:
        if session_id not in sessions:
            shutil.rmtree(path, ignore_errors=True)  # another launcher may be at it, too


def _entries(directory: Path) -> list[Path]:
    try:
        return [path for path in directory.iterdir() if path.name.partition("-")[0].isdecimal()]
    except FileNotFoundError:  # no job of several ranks has run here yet
        return []


def _conclude(exchange: Path, ranks: int, return_code: int, *outputs: outcomes.Output) -> Outcome:
    """What became of the call, when nothing is left of it."""
    try:
        failure, value = exchange / "failure", exchange / "value"
        if failure.is_symlink():
            outcome, rank = _read(failure, outputs), failure.readlink().suffix[1:]
            return outcomes.on_rank(outcome, int(rank), ranks) if rank.isdecimal() else outcome
        if return_code == 0 and value.exists():
            return _read(value, outputs)
        return outcomes.node_failure(*outputs) or outcomes.worker_died(return_code, *outputs)
    except OSError as error:
        return outcomes.failed("exit", f"what the ranks have left in {exchange} cannot be read: {error.strerror}")
    finally:
        shutil.rmtree(exchange, ignore_errors=True)


def _read(path: Path, outputs: tuple[outcomes.Output, ...]) -> Outcome:
    frame = path.read_bytes()
    _, status, number = worker.ANSWER.unpack_from(frame)
    return outcomes.answered(status, number, frame[worker.ANSWER.size :], *outputs)
