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
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from balsam_exec.hooks.pool import HookPool
from balsam_exec.launcher import preambles
from balsam_exec.launcher.commands import CommandRunner, cannot_start
from balsam_exec.launcher.events import Acquire, Action, Drain, Ended, Event, Exit, Kill, Send, Start
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
from balsam_exec.model.sessions import LeasedJob, Room, SessionRecord
from balsam_exec.platform import mpi
from balsam_exec.platform.cpus import Core
from balsam_exec.platform.gpus import gpu_environment
from balsam_exec.platform.nodes import NodeSpec

log = logging.getLogger(__name__)

#: Seconds an acquire waits at the service for the first job.
_POLL = 20.0
#: Processes at most in which apps are asked for the preambles of jobs.
_ASKERS = 2


@dataclass(frozen=True, slots=True)
class Mission:
    """Where a launcher works and which jobs it may take."""

    data: Path  #: the site's directory of workdirs
    exchange: Path  #: where the ranks of Python apps find their call and leave what came of it
    nodes: tuple[NodeSpec, ...]
    terms: Terms
    batch_job_id: int | None = None
    serial_only: bool = False
    filter_tags: Tags | None = None
    max_entity: int = MAX_ENTITY  #: the largest serialized result that the service takes, in bytes
    affinity: Affinity = "none"  #: of jobs that do not say
    mpi_launcher: mpi.Launcher = "mpiexec"
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
        self._link = Link(service, session, self.reactor.post)
        self._commands = CommandRunner(self.reactor)
        self._ranks = RankRunner(self._commands, mission.exchange, mission.max_entity)
        self._python = PythonRunner(self.reactor, sum(node.cores for node in mission.nodes), mission.max_entity)
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
                self._link.acquire(action.request(self._mission.room, min(_POLL, self._session.ttl_sec / 2)))

    def _start(self, start: Start) -> None:
        job = start.job
        app = self._link.apps.get(job.app_digest)
        if app is None:
            gone = NotFound(f"its app (id {job.app_id}) no longer exists")
            self.reactor.emit(Ended(job.id, cannot_start(gone)))
        elif preambles.HOOK in app.hooks:
            call = preambles.call_of(job, app, self._session.site_id, self._mission.data / job.workdir)
            self._preambles.ask(call, app.payload or b"", partial(self._start_after, start, app))
        else:
            self._start_after(start, app, "")

    def _start_after(self, start: Start, app: AppRecord, preamble: str) -> None:
        try:
            self._start_app(start.job, app, start.placement, preamble)
        except (BalsamError, OSError, ValueError) as problem:
            self.reactor.emit(Ended(start.job.id, cannot_start(problem)))

    def _start_app(self, job: LeasedJob, app: AppRecord, placement: Placement, preamble: str) -> None:
        workdir = self._mission.data / job.workdir
        share = placement.shares[0]
        spec = self._mission.nodes[share.node]
        environment = {**self._environment, **app.environment_variables}
        if spec.gpus:
            environment |= gpu_environment([spec.gpus[index] for index, _ in share.gpus], spec.amd)
        binding = self._binding(job, share, spec)
        is_python = app.command_template is None
        if is_python and job.ranks == 1:
            self._python.start(job, app, Surroundings(workdir, environment, binding, preamble))
            return
        environment["BALSAM_JOB_ID"] = str(job.id)
        python = (app.python_exe or sys.executable) if is_python else None
        prefix = mpi.launch_prefix(job, environment, binding, self._mission.mpi_launcher, python, bool(preamble))
        around = Surroundings(workdir, {**mpi.ENVIRONMENT, **environment} if prefix else environment, binding, preamble)
        if is_python:
            self._ranks.start(job, app, around, prefix)
        else:
            self._commands.start(job, app, around, prefix)

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


def obey_signals(launcher: Launcher) -> None:
    """SIGTERM, SIGINT and SIGHUP drain; a second one ends the jobs at once. (Main thread only.)"""

    def handle(signum: int, _: object) -> None:
        launcher.drain(f"the launcher got {signal.Signals(signum).name}")

    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, handle)


def obey_guardian(launcher: Launcher, guardian: int) -> None:
    """End at once when a guardian is gone: `guardian` is a pipe whose other end it holds."""

    def gone(_: int) -> None:
        launcher.reactor.forget(guardian)
        os.close(guardian)
        launcher.drain("a guardian of the launcher was killed", at_once=True)

    launcher.reactor.watch(guardian, gone)
