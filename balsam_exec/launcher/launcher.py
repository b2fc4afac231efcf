"""The launcher's main loop: takes events to the pilot, and does what it decides."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from balsam_exec.hooks.pool import HookPool
from balsam_exec.launcher import preambles
from balsam_exec.launcher.commands import CommandRunner, cannot_start
from balsam_exec.launcher.events import Acquire, Action, Drain, Ended, Event, Exit, Kill, Send, Start, StopAsking
from balsam_exec.launcher.link import LauncherService, Link
from balsam_exec.launcher.pilot import Pilot, Terms
from balsam_exec.launcher.placement import Placement, Share, cpus_of_ranks, is_bound
from balsam_exec.launcher.preambles import Preambles
from balsam_exec.launcher.ranks import RankRunner
from balsam_exec.launcher.reactor import Reactor
from balsam_exec.launcher.surroundings import Surroundings
from balsam_exec.launcher.workers import PythonRunner
from balsam_exec.model.apps import AppRecord
from balsam_exec.model.base import MAX_ENTITY, Tags
from balsam_exec.model.errors import BalsamError, ConfigurationError, NotFound
from balsam_exec.model.jobs import Affinity
from balsam_exec.model.sessions import LeasedJob, Room, SessionRecord, SortBy
from balsam_exec.platform import mpi
from balsam_exec.platform.cpus import Core
from balsam_exec.platform.gpus import gpu_environment
from balsam_exec.platform.nodes import NodeSpec

log = logging.getLogger(__name__)

#: Seconds an acquire waits at the service for the first job.
_POLL = 20.0
#: Seconds in which an order to end that comes again is the same one: a batch scheduler may signal all processes of an
#: allocation, of which some then tell others.
_ECHO = 1.0
#: Processes at most in which apps are asked for the preambles of jobs.
_ASKERS = 2


@dataclass(frozen=True, slots=True)
class Mission:
    """Where a launcher works and which jobs it may take."""

    data: Path  #: the site's directory of workdirs
    exchange: Path  #: where the ranks of Python apps find their call and leave what came of it
    nodes: tuple[NodeSpec, ...]
    terms: Terms
    here: int | None = 0  #: which of them this process is on; None: none of them
    is_scheduled: bool = False  #: whether MPI launchers know the nodes by their names
    batch_job_id: int | None = None
    serial_only: bool = False
    filter_tags: Tags | None = None
    max_entity: int = MAX_ENTITY  #: the largest serialized result that the service takes, in bytes
    affinity: Affinity = "none"  #: of jobs that do not say
    sort_by: SortBy = "small_first"  #: which jobs it takes first
    mpi_launcher: str = "mpiexec"  #: or "srun", or a template
    hook_timeout: float = 600.0  #: seconds that an app has to give a preamble

    @property
    def room(self) -> Room:
        """Which jobs it can take."""
        return Room(
            max_nodes=len(self.nodes),
            max_gpus_per_node=max(len(node.gpus) for node in self.nodes),
            serial_only=self.serial_only,
            filter_tags=self.filter_tags or {},
        )


class Launcher:
    """Runs jobs of one session until it is drained, idle, out of time, or the session is lost."""

    def __init__(
        self, service: LauncherService, session: SessionRecord, mission: Mission, environment: Mapping[str, str]
    ) -> None:
        """`environment` is what jobs inherit."""
        self.reactor = Reactor()
        self._service = service
        self._session = session
        self._mission = mission
        now = time.monotonic()
        self._pilot = Pilot(mission.nodes, mission.terms, now, time.time() - now, mission.affinity)
        self._link = Link(service, session, self.reactor)
        self._commands = CommandRunner(self.reactor)
        self._ranks = RankRunner(self._commands, mission.exchange, session.id, mission.max_entity)
        self._python = PythonRunner(self.reactor, max(node.cores for node in mission.nodes), mission.max_entity)
        self._here = -1 if mission.here is None else mission.here  #: the node of its direct children
        self._environment = dict(environment)
        if mission.batch_job_id is not None:
            self._environment["BALSAM_BATCH_JOB_ID"] = str(mission.batch_job_id)
        self._preambles = Preambles(self.reactor, HookPool(_ASKERS, self._environment), mission.hook_timeout)

    def drain(self, reason: str, at_once: bool = False) -> None:
        """End the launcher: for signal handlers and other threads."""
        self.reactor.post(Drain(reason, at_once))

    def run(self) -> bool:
        """Returns when no job of it is running any more: whether the session was still ours then."""
        events: list[Event] = []
        try:
            while True:
                for action in self._pilot.step(events, time.monotonic()):
                    if isinstance(action, Exit):
                        return self._leave(action)
                    self._do(action)
                deadline = self._pilot.deadline
                timeout = None if math.isinf(deadline) else max(0.0, deadline - time.monotonic())
                events = self.reactor.run(timeout)
        finally:
            self._link.stop()
            self._preambles.close()
            self._python.close()
            self._commands.close()
            self.reactor.close()

    def _do(self, action: Action) -> None:
        match action:
            case Start():
                self._start(action)
            case Kill(job_id, signum):
                if not (self._commands.kill(job_id, signum) or self._python.kill(job_id, signum)):
                    self._preambles.kill(job_id)
            case Send(reports, widen):
                self._link.report(reports, widen)
            case Acquire():
                timeout = min(_POLL, self._session.ttl_sec / 2)
                request = action.request(self._mission.room, self._mission.sort_by, timeout)
                self._link.acquire(request, stands=action.stands)
            case StopAsking():
                self._link.stop_asking()

    def _start(self, start: Start) -> None:
        job = start.job
        app = self._link.apps.get(job.app_digest)
        if app is None:
            gone = NotFound(f"its app (id {job.app_id}) no longer exists")
            self.reactor.emit(Ended(job.id, cannot_start(gone)))
        elif preambles.HOOK in app.hooks:
            call = preambles.call_of(job, app, self._session.site_id, self._workdir(job))
            self._preambles.ask(call, app.payload or b"", partial(self._start_after, start, app))
        else:
            self._start_after(start, app, "")

    def _start_after(self, start: Start, app: AppRecord, preamble: str) -> None:
        try:
            self._start_app(start.job, app, start.placement, preamble)
        except (BalsamError, OSError, ValueError) as problem:
            self.reactor.emit(Ended(start.job.id, cannot_start(problem)))

    def _start_app(self, job: LeasedJob, app: AppRecord, placement: Placement, preamble: str) -> None:
        parts = {share.node: self._part(job, share) for share in placement.shares}
        first, own = next(iter(parts.values())), parts.get(self._here)
        environment = {**self._environment, **app.environment_variables, **first.variables}
        around = Surroundings(self._workdir(job), environment, own.binding if own else (), preamble)
        is_python = app.command_template is None
        if job.ranks == 1 and own and is_python:
            self._python.start(job, app, around)
            return
        environment["BALSAM_JOB_ID"] = str(job.id)
        if job.ranks == 1 and own:
            self._commands.start(job, app, around, [])
            return
        python = (app.python_exe or sys.executable) if is_python else None
        launcher, step = self._mission.mpi_launcher, f"balsam-{job.id}.{job.epoch}"
        prefix = mpi.launch_prefix(
            job, environment, list(parts.values()), launcher, python=python, path_may_change=bool(preamble), step=step
        )
        end = mpi.end_step(step) if launcher == "srun" else ()
        around = replace(around, environment={**mpi.ENVIRONMENT, **environment}, end=end)
        (self._ranks if is_python else self._commands).start(job, app, around, prefix)

    def _workdir(self, job: LeasedJob) -> str:
        return os.path.join(self._mission.data, job.workdir)

    def _part(self, job: LeasedJob, share: Share) -> mpi.Part:
        """What the job has of one node."""
        spec = self._mission.nodes[share.node]
        gpus = gpu_environment([spec.gpus[index] for index, _ in share.gpus], spec.amd) if spec.gpus else {}
        return mpi.Part(spec.name if self._mission.is_scheduled else "", gpus, self._binding(job, share, spec))

    def _binding(self, job: LeasedJob, share: Share, spec: NodeSpec) -> tuple[Core, ...]:
        """The CPUs of each rank; none where they are not bound."""
        if not is_bound(job, self._mission.affinity):
            return ()
        if not spec.cpus:
            raise ConfigurationError(
                f"it cannot be bound to cores (cpu_affinity=depth): settings.yml speaks of {spec.cores} cores and this "
                "machine has fewer"
            )
        return cpus_of_ranks(job, share, spec)

    def _leave(self, action: Exit) -> bool:
        log.info("launcher ends: %s", action.reason)
        self._link.stop()
        if not action.lost:
            with suppress(NotFound):  # it expired a moment ago
                self._service.close_session(self._session.id)
        return not action.lost


class Drainable(Protocol):
    """What runs until it is told to end."""

    reactor: Reactor

    def drain(self, reason: str, at_once: bool = False) -> None: ...


def obey_orders(runner: Drainable, until_eof: bool = False) -> None:
    """SIGTERM, SIGINT and SIGHUP drain, and so does the end of standard input if `until_eof`, on which nothing comes.
    A second order ends the jobs at once. (Main thread only.)"""
    last = -math.inf

    def order(reason: str) -> None:
        nonlocal last
        if time.monotonic() - last > _ECHO:
            last = time.monotonic()
            runner.drain(reason)

    def ready(_: int) -> None:
        if not os.read(stdin, 4096):
            runner.reactor.forget(stdin)
            order("the launcher was told to end")

    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, lambda number, _: order(f"the launcher got {signal.Signals(number).name}"))
    if until_eof:
        stdin = sys.stdin.fileno()
        runner.reactor.watch(stdin, ready)


def obey_guardian(runner: Drainable, guardian: int) -> None:
    """End at once when a guardian is gone: `guardian` is a pipe whose other end it holds."""

    def gone(_: int) -> None:
        runner.reactor.forget(guardian)
        os.close(guardian)
        runner.drain("a guardian of the launcher was killed", at_once=True)

    runner.reactor.watch(guardian, gone)
