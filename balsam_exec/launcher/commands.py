"""Jobs that are processes of their own: each leads a session, its output goes to files of its workdir."""

from __future__ import annotations

import errno
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache

from balsam_exec.launcher import outcomes
from balsam_exec.launcher.events import Ended, Outcome
from balsam_exec.launcher.reactor import Reactor, open_pidfd
from balsam_exec.launcher.surroundings import Surroundings, in_shell
from balsam_exec.launcher.tree import Tree
from balsam_exec.model.apps import AppRecord, container_words
from balsam_exec.model.errors import BalsamError
from balsam_exec.model.sessions import LeasedJob
from balsam_exec.model.states import JobState
from balsam_exec.platform.cpus import confined

log = logging.getLogger(__name__)

#: A command of such characters means to a shell what it says: words, some of them in single quotes.
_PLAIN = re.compile(r"[\w@%+=:,./' -]+", re.ASCII)

#: What runs the line after it in a container, where there may be no bash.
_IN_ANY_SHELL = ("sh", "-c", 'exec "$(command -v bash || echo sh)" -c "$1"', "sh")


#: From the return code (as of subprocess) and the output files, each with its length before, to what became of a job.
Conclude = Callable[..., Outcome]


@dataclass(slots=True)
class _Command:
    process: subprocess.Popen[bytes]
    tree: Tree
    pidfd: int
    outputs: list[outcomes.Output]  #: of its stderr and stdout
    conclude: Conclude
    around: Surroundings
    ending: bool = False  #: whether `around.end` is under way
    was_told: bool = True  #: False: that found nobody to tell
    has_ended: bool = False


class CommandRunner:
    """Starts the processes of jobs and tells the reactor when nothing is left of them."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._commands: dict[int, _Command] = {}
        self._stdin = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def start(self, job: LeasedJob, app: AppRecord, around: Surroundings, prefix: list[str]) -> None:
        """Run the command of an app behind the words of `prefix`. Raises BalsamError or OSError if that cannot be."""
        from balsam_exec.apps.templates import render  # Jinja2: many launchers never run a command

        assert app.command_template is not None
        line = render(app.command_template, app.parameters, job.parameters, app.name)
        if container := container_words(app.container):
            words = in_shell(around.preamble, [*prefix, *container, *_IN_ANY_SHELL, line], searched=bool(prefix))
        elif around.preamble:  # which may change the PATH, of the MPI launcher too
            words = in_shell(around.preamble, [*prefix, "bash", "-c", line], searched=bool(prefix))
        else:
            words = prefix + command_words(line, around.environment.get("PATH"))
        self.run(job, words, around, outcomes.ranks_ended if prefix else outcomes.command_ended)

    def run(self, job: LeasedJob, words: list[str], around: Surroundings, conclude: Conclude) -> None:
        """Run these words; when nothing is left of the job, `conclude` says what became of it.

        Raises OSError or ConfigurationError if they cannot be run.
        """
        with ExitStack() as opened:
            descriptors, outputs = [], []
            for name in outcomes.output_files(job):
                path = around.path(name)
                descriptor = _open_output(path)
                opened.callback(os.close, descriptor)
                descriptors.append(descriptor)
                outputs.append((path, os.lseek(descriptor, 0, os.SEEK_END)))
            process = self._spawn(words, descriptors[-1], descriptors[0], around)
        command = _Command(process, Tree(process.pid), open_pidfd(process), outputs, conclude, around)
        self._commands[job.id] = command
        self._reactor.watch(command.pidfd, lambda _: self._ended(job.id))

    def kill(self, job_id: int, signum: signal.Signals) -> bool:
        """Signal the job's processes; False if it is none of ours."""
        command = self._commands.get(job_id)
        if command is None:
            return False
        command.tree.tell(signum, job_id)
        if command.around.end and signum != signal.SIGKILL:
            self._end_ranks(job_id, command)
        elif command.has_ended:  # whatever those say who were to tell its ranks
            self._conclude(job_id)
        return True

    def close(self) -> None:
        os.close(self._stdin)

    def _end_ranks(self, job_id: int, command: _Command) -> None:
        around = command.around
        try:
            process = subprocess.Popen(around.end, env=around.environment, stdin=self._stdin, start_new_session=True)
            pidfd = open_pidfd(process)
        except OSError as error:  # they are killed a little later, like all that do not hear
            log.warning("cannot tell ranks to end: %s", error)
            return

        def ended(_: int) -> None:
            self._reactor.forget(pidfd)
            os.close(pidfd)
            command.ending, command.was_told = False, process.wait() == 0
            if command.has_ended and self._commands.get(job_id) is command:
                self._conclude(job_id)

        command.ending = True
        self._reactor.watch(pidfd, ended)

    def _spawn(self, words: list[str], stdout: int, stderr: int, around: Surroundings) -> subprocess.Popen[bytes]:
        # Nothing here keeps subprocess from vfork (a preexec_fn would), which costs the same whatever our size.
        with confined(around.cpus):
            return subprocess.Popen(
                words,
                cwd=around.workdir,
                env=around.environment,
                stdin=self._stdin,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )

    def _ended(self, job_id: int) -> None:
        """The process that we watch for this job has ended."""
        command = self._commands[job_id]
        self._reactor.forget(command.pidfd)
        os.close(command.pidfd)
        if (pidfd := command.tree.survivor()) is not None:
            # A shell dies of SIGTERM at once; what it ran may be writing a checkpoint, and has its time of grace.
            command.pidfd = pidfd
            self._reactor.watch(pidfd, lambda _: self._ended(job_id))
            return
        command.has_ended = True
        if not command.ending:
            self._conclude(job_id)

    def _conclude(self, job_id: int) -> None:
        """Nothing is left of the job."""
        command = self._commands.pop(job_id)
        command.tree.clear()
        outcome = command.conclude(command.process.wait(), *command.outputs)
        # srun tells some time later that its ranks have ended: they may have done so before they could be told.
        by_itself = not command.was_told and outcome.state is JobState.RUN_DONE
        self._reactor.emit(Ended(job_id, outcome, command.tree.unasked or by_itself))


def cannot_start(problem: BalsamError | OSError | ValueError) -> Outcome:
    """The outcome of a job whose start raised this; ValueError: words or variables that no process can be given."""
    if isinstance(problem, (BalsamError, ValueError)):
        return outcomes.failed("exit", f"the job could not be started: {problem}")
    what = f" {problem.filename}" if problem.filename else ""
    hint = " (arguments and environment are too large)" if problem.errno == errno.E2BIG else ""
    return outcomes.failed("exit", f"the job could not be started: {problem.strerror or problem}{what}{hint}")


def command_words(line: str, path: str | None) -> list[str]:
    """The program and arguments that run a command line: directly if no shell is needed for it, else by bash."""
    shell = ["bash", "-c", line]
    if not _PLAIN.fullmatch(line):
        return shell
    try:
        words = shlex.split(line) if "'" in line else line.split()
    except ValueError:  # bash will say what is wrong with it
        return shell
    program = _find(words[0], path) if words else None
    return [program, *words[1:]] if program else shell


@lru_cache(maxsize=1024)
def _find(word: str, path: str | None) -> str | None:
    """The executable of an absolute path or on PATH; a relative path is looked up from the workdir, by bash."""
    if "=" in word or ("/" in word and not word.startswith("/")):
        return None
    return shutil.which(word, path=path)


def _open_output(path: str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o666)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return os.open(path, flags, 0o666)
