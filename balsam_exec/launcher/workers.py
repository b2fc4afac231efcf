"""Python apps on one rank: warm worker processes (worker.py), found, fed, watched and replaced."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass

from balsam_exec.apps import codec
from balsam_exec.launcher import outcomes, worker
from balsam_exec.launcher.events import Ended, Outcome
from balsam_exec.launcher.reactor import READ, WRITE, Reactor, open_pidfd
from balsam_exec.launcher.surroundings import Surroundings, in_shell
from balsam_exec.launcher.tree import Tree
from balsam_exec.model.apps import AppRecord, Isolation, container_words
from balsam_exec.model.errors import ConfigurationError
from balsam_exec.model.sessions import LeasedJob
from balsam_exec.platform.cpus import confine

#: What a worker is for: the words of an interpreter, the environment and the preamble it starts with.
Kind = tuple[tuple[str, ...], frozenset[tuple[str, str]], str]

#: Of a job that was given none.
NO_ARGUMENTS = codec.dumps(((), {}))
_CHUNK = 256 * 1024


@dataclass(slots=True)
class _Task:
    job_id: int
    outputs: list[outcomes.Output]  #: of its stderr and stdout
    outcome: Outcome | None = None  #: where it was told to end, and answered all the same


class _Worker:
    """One worker process and the socket to it. Never blocks: what it does not take at once goes when it can."""

    def __init__(
        self, kind: Kind, limit: int, reactor: Reactor, on_answer: Callable[[_Worker, int, int, bytes], None]
    ) -> None:
        """Raises OSError if the interpreter cannot be started."""
        python, environment, preamble = kind
        self.kind = kind
        self.task: _Task | None = None
        self.apps: set[str] = set()
        self._reactor = reactor
        self._on_answer = on_answer
        self._received = bytearray()
        self._unsent = bytearray()
        self._mask = READ
        self._cpus: Collection[int] = os.sched_getaffinity(0)
        ours, theirs = socket.socketpair()
        try:
            words = [*python, worker.__file__, str(theirs.fileno()), str(limit), codec.__file__]
            self.process = subprocess.Popen(
                in_shell(preamble, words),
                stdin=subprocess.DEVNULL,
                stdout=2,
                pass_fds=[theirs.fileno()],
                env=dict(environment),
                start_new_session=True,
            )
            self.pidfd = open_pidfd(self.process)
            self.tree = Tree(self.process.pid)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        self._socket = ours
        reactor.watch(ours.fileno(), self._ready)

    def confine(self, cpus: Collection[int]) -> None:
        """Run the next call on these CPUs only. Raises ConfigurationError."""
        if cpus != self._cpus:
            confine(self.process.pid, cpus)
            self._cpus = cpus

    def send(self, request: tuple[object, ...]) -> None:
        body = pickle.dumps(request, protocol=4)
        self._unsent += worker.REQUEST.pack(len(body))
        self._unsent += body
        self._flush()

    def receive(self) -> None:
        """Take what has come, and hand on a complete answer."""
        self._read()
        head = worker.ANSWER.size
        if len(self._received) >= head:
            length, status, number = worker.ANSWER.unpack_from(self._received)
            if len(self._received) >= head + length:
                body = bytes(memoryview(self._received)[head : head + length])
                self._received.clear()
                self._on_answer(self, status, number, body)

    def close(self) -> None:
        """Close the channel, on which an idle worker ends by itself."""
        if not self._closed:
            self._reactor.forget(self._socket.fileno())
            self._socket.close()

    def _ready(self, mask: int) -> None:
        if mask & WRITE:
            self._flush()
        if mask & READ:
            self.receive()

    def _read(self) -> None:
        if self._closed:
            return
        with suppress(BlockingIOError, ConnectionError):
            while data := self._socket.recv(_CHUNK):
                self._received += data
                if len(data) < _CHUNK:
                    return
            # The worker has closed it: if it has not ended, it is of no more use.
            self.close()
            self.tree.tell(signal.SIGKILL)

    def _flush(self) -> None:
        if self._closed:
            return
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            self._want(READ | WRITE)
        except ConnectionError:  # it is dying; its pidfd tells
            self._unsent.clear()
        else:
            self._want(READ)

    def _want(self, mask: int) -> None:
        if mask != self._mask:
            self._mask = mask
            self._reactor.change(self._socket.fileno(), self._ready, mask)

    @property
    def _closed(self) -> bool:
        return self._socket.fileno() < 0


class PythonRunner:
    """Runs the calls of Python apps in workers, at most one call in each at a time."""

    def __init__(self, reactor: Reactor, capacity: int, limit: int) -> None:
        """Keeps up to `capacity` workers of all kinds, or as many as are busy; results have at most `limit` bytes."""
        self._reactor = reactor
        self._capacity = capacity
        self._limit = limit
        self._allowed: Collection[int] = os.sched_getaffinity(0)
        self._idle: list[_Worker] = []  #: the most recently used last
        self._busy: dict[int, _Worker] = {}

    def start(self, job: LeasedJob, app: AppRecord, around: Surroundings) -> None:
        """The environment `around` it is without what differs from job to job.

        Raises BalsamError or OSError if it cannot be started.
        """
        python = (*container_words(app.container), app.python_exe or sys.executable)
        kind = (python, frozenset(around.environment.items()), around.preamble)
        chosen = self._take(kind, app.digest)
        try:
            chosen.confine(around.cpus or self._allowed)
        except ConfigurationError:
            self._idle.append(chosen)
            raise
        files = outcomes.output_files(job)
        chosen.task = _Task(job.id, [(path, outcomes.size(path)) for path in map(around.path, files)])
        self._busy[job.id] = chosen
        if app.digest not in chosen.apps:
            chosen.apps.add(app.digest)
            chosen.send(("app", app.digest, app.payload, app.isolation is Isolation.PROCESS))
        variables = {"BALSAM_JOB_ID": str(job.id)}
        chosen.send(("call", app.digest, job.arguments or NO_ARGUMENTS, around.workdir, files, variables))

    def kill(self, job_id: int, signum: signal.Signals) -> bool:
        """Signal the job's worker, and all it started; False if it is none of ours."""
        found = self._busy.get(job_id)
        if found is not None:
            found.tree.tell(signum, job_id)
        return found is not None

    def close(self, patience: float = 1.0) -> None:
        """End the idle workers, at the latest after `patience` seconds; call it when no job is running."""
        for each in self._idle:
            self._dismiss(each, patience)
        self._idle.clear()

    def _take(self, kind: Kind, digest: str) -> _Worker:
        fitting = [each for each in self._idle if each.kind == kind]
        if fitting:
            chosen = next((each for each in reversed(fitting) if digest in each.apps), fitting[-1])
            self._idle.remove(chosen)
            return chosen
        if self._idle and len(self._idle) + len(self._busy) >= self._capacity:
            self._dismiss(self._idle.pop(0))
        made = _Worker(kind, self._limit, self._reactor, self._answered)
        self._reactor.watch(made.pidfd, lambda _: self._died(made))
        return made

    def _answered(self, source: _Worker, status: int, number: int, body: bytes) -> None:
        task = source.task
        if task is None:
            source.tree.tell(signal.SIGKILL)  # it speaks out of turn: not our worker's code any more
            return
        outcome = outcomes.answered(status, number, body, *task.outputs)
        if source.tree.told:  # the answer is told when nothing is left of it, as any end would be
            task.outcome = outcome
            source.close()
            return
        source.task = None
        del self._busy[task.job_id]
        self._idle.append(source)
        self._reactor.emit(Ended(task.job_id, outcome))

    def _died(self, dead: _Worker) -> None:
        """The process that we watch for this worker has ended: it, or one that it had started."""
        if dead.task is not None:
            dead.receive()  # its last answer may have come together with its death
        dead.close()
        if dead in self._idle:
            self._idle.remove(dead)
        self._reactor.forget(dead.pidfd)
        os.close(dead.pidfd)
        if (pidfd := dead.tree.survivor()) is not None:
            dead.pidfd = pidfd
            self._reactor.watch(pidfd, lambda _: self._died(dead))
            return
        dead.tree.clear()
        return_code = dead.process.wait()
        if (task := dead.task) is not None:
            del self._busy[task.job_id]
            outcome = task.outcome or outcomes.worker_died(return_code, *task.outputs)
            self._reactor.emit(Ended(task.job_id, outcome))

    def _dismiss(self, unwanted: _Worker, patience: float = 0.0) -> None:
        self._reactor.forget(unwanted.pidfd)
        os.close(unwanted.pidfd)
        unwanted.close()
        try:
            unwanted.process.wait(patience)
        except subprocess.TimeoutExpired:
            unwanted.tree.tell(signal.SIGKILL)
            unwanted.process.wait()
