"""What a launcher decides. `Pilot.step` takes what happened and answers what to do; it does no I/O and has no clock.

Events and actions are in `events`. Times are seconds of a monotonic clock; `deadline` says when a step is due even if
nothing happens.
"""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from balsam_exec.launcher.events import (
    Acquire,
    Action,
    Alive,
    Arrived,
    Delivered,
    Drain,
    Ended,
    Event,
    Exit,
    Kill,
    Lost,
    Outcome,
    Refused,
    Send,
    Stale,
    Start,
)
from balsam_exec.launcher.outbox import Lease, Outbox
from balsam_exec.launcher.placement import SERIAL, Need, Node, Placement, obstacle, occupy, place, room, vacate
from balsam_exec.model.base import MAX_BULK
from balsam_exec.model.jobs import KILLED, Affinity, Result
from balsam_exec.model.sessions import LeasedJob, Report
from balsam_exec.model.states import JobState
from balsam_exec.platform.nodes import NodeSpec

log = logging.getLogger(__name__)

#: Seconds after which an acquire that is not answered means that there is nothing to do.
_ANSWER_TIME = 1.0
#: Seconds within which the SIGTERM of a batch scheduler reaches all that runs in an allocation, jobs and launcher.
_TOGETHER = 0.5
#: Return codes of what such a SIGTERM has ended, itself or through a shell.
_TERMINATED = frozenset({-signal.SIGTERM, 128 + signal.SIGTERM})
#: So much of an app's digest names its version in the event of a run.
_SHORT = 12


@dataclass(frozen=True, slots=True)
class Terms:
    """What a launcher has to keep to, in seconds."""

    ttl: float  #: of the session, after each Alive
    wall_time: float = math.inf  #: from the start to the moment when the allocation is taken away
    idle: float = math.inf  #: without work, before it ends
    margin: float = 15.0  #: before the end of the wall time, to end jobs and report
    grace: float = 5.0  #: between SIGTERM and SIGKILL
    linger: float = 0.02  #: of reports that are not urgent
    prefetch: float = 0.4  #: of work to hold in advance
    patience: float = 20.0  #: of the first job in the backlog, while others pass it


@dataclass(slots=True)
class _Waiting:
    job: LeasedJob
    need: Need
    since: float


@dataclass(slots=True)
class _Running:
    job: LeasedJob
    placement: Placement
    timed_out: str = ""  #: why it was told to end before its time
    killed: bool = False  #: by its owner
    stale: bool = False  #: its lease is over: nobody wants to hear of it
    kill_at: float = math.inf
    terminated: Outcome | None = None  #: by a SIGTERM that is not ours: the allocation's end, if that comes to us too
    conclude_at: float = math.inf  #: when to take it for the job's own affair


class Pilot:
    """The state of one launcher, changed by `step` alone."""

    def __init__(
        self, nodes: Sequence[NodeSpec], terms: Terms, now: float, epoch: float, affinity: Affinity = "none"
    ) -> None:
        """`epoch` is the Unix time when the monotonic clock was 0; `affinity` that of jobs that do not say."""
        self._specs = tuple(nodes)
        self._nodes = tuple(map(Node.empty, nodes))
        self._most_waiting = sum(node.cores for node in nodes)
        self._terms = terms
        self._epoch = epoch
        self._affinity = affinity
        self._backlog: dict[int, _Waiting] = {}
        self._running: dict[int, _Running] = {}
        self._doomed: frozenset[Lease] = frozenset()  #: to be killed; some may have ended, or be on their way to us
        self._outbox = Outbox(terms.linger)
        self._rate = _Rate(now)
        self._usual = SERIAL  #: what the last job needed, and so probably the next
        self._acquiring = False
        self._asked_at = now
        self._ending = ""
        self._lost = ""
        self._exited = False
        self._idle_since = now
        self._lease_until = now + terms.ttl
        self._drain_at = now + max(terms.wall_time - terms.margin, terms.wall_time / 2)

    @property
    def deadline(self) -> float:
        """When the next step is due, whatever happens; infinity if only an event can change anything."""
        due = [self._lease_until, self._idle_until]
        if not self._lost:
            due.append(self._outbox.due)
        if not self._ending:
            due.append(self._drain_at)
        due += (min(run.kill_at, run.conclude_at) for run in self._running.values())
        return min(due)

    def step(self, events: Iterable[Event], now: float) -> list[Action]:
        """What to do now that these events have happened, in order."""
        actions: list[Action] = []
        for event in events:
            self._take(event, now, actions)
        if now >= self._lease_until and not self._lost:
            self._lose("the lease cannot be renewed: the service was not heard of in time", now)
        if now >= self._drain_at and not self._ending:
            self._drain("the allocation's time is over", now, actions)
        if now >= self._idle_until:
            self._drain("there was nothing to do", now, actions)
        self._conclude_terminated(now)
        self._end_overdue(now, actions)
        self._start_jobs(now, actions)
        self._ask_for_jobs(now, actions)
        self._send(now, actions)
        self._exit_when_done(actions)
        return actions

    # --- what events change

    def _take(self, event: Event, now: float, actions: list[Action]) -> None:
        match event:
            case Ended(job_id, outcome, unasked):
                self._end(job_id, outcome, unasked, now)
            case Delivered():
                self._outbox.delivered()
            case Arrived(jobs):
                self._arrive(jobs, now)
            case Alive(kill):
                self._lease_until = now + self._terms.ttl
                self._kill(kill, now, actions)
            case Stale(job_ids):
                self._drop(self._outbox.stale(job_ids, now), now)
            case Refused(why):
                if given_up := self._outbox.refused(why, now):
                    log.error("the service refuses to record %s of job %d: %s", given_up.state, given_up.job_id, why)
            case Drain(reason, at_once):
                self._drain(reason, now, actions, at_once or bool(self._ending))
            case Lost(reason):
                self._lose(reason, now)

    def _arrive(self, jobs: tuple[LeasedJob, ...], now: float) -> None:
        self._acquiring = False
        for job in jobs:
            if self._ending:
                self._report(job, None, now)
                continue
            if (job.id, job.epoch) in self._doomed:
                self._report(job, JobState.USER_KILLED, now, KILLED)
                continue
            need = Need.of(job, self._affinity)
            self._backlog[job.id] = _Waiting(job, need, now)
            if why := obstacle(self._specs, need):
                del self._backlog[job.id]
                self._fail(job, f"the job cannot run here: {why}", now)

    def _end(self, job_id: int, outcome: Outcome, unasked: bool, now: float) -> None:
        run = self._running[job_id]
        terminated = outcome.result.return_code in _TERMINATED
        if terminated and not (run.timed_out or run.killed or run.stale):
            run.terminated, run.conclude_at = outcome, now + _TOGETHER
        else:
            # A SIGTERM may have come to the job before ours: the same end of the allocation, heard of twice.
            self._conclude(job_id, outcome, unasked and not terminated, now)

    def _conclude(self, job_id: int, outcome: Outcome, unasked: bool, now: float) -> None:
        run = self._running.pop(job_id)
        self._nodes = vacate(self._nodes, run.placement)
        self._idle_since = now
        if run.stale:
            return
        if unasked or outcome.result.value:  # the order came too late
            self._report(run.job, outcome.state, now, outcome.data, outcome.result)
        elif run.killed:
            self._report(run.job, JobState.USER_KILLED, now, {**outcome.data, **KILLED})
        elif run.timed_out:
            self._report(run.job, JobState.RUN_TIMEOUT, now, {"error": run.timed_out})
        else:
            self._report(run.job, outcome.state, now, outcome.data, outcome.result)

    def _kill(self, doomed: frozenset[Lease], now: float, actions: list[Action]) -> None:
        """Their owner wants these jobs killed. Those on their way to us are dealt with when they arrive."""
        self._doomed = doomed
        for job_id, epoch in sorted(doomed):
            if (waiting := self._backlog.get(job_id)) and waiting.job.epoch == epoch:
                del self._backlog[job_id]
                self._report(waiting.job, JobState.USER_KILLED, now, KILLED)
            if (run := self._running.get(job_id)) and run.job.epoch == epoch and not run.killed:
                run.killed = True
                self._tell_to_end(run, now, actions)

    def _tell_to_end(self, run: _Running, now: float, actions: list[Action]) -> None:
        if math.isinf(run.kill_at) and run.terminated is None:
            run.kill_at = now + self._terms.grace
            actions.append(Kill(run.job.id, signal.SIGTERM))

    def _drop(self, leases: Collection[Lease], now: float) -> None:
        """These leases are over; the jobs may have come back to us under others."""
        self._outbox.forget(leases)
        for job_id, epoch in leases:
            if (waiting := self._backlog.get(job_id)) and waiting.job.epoch == epoch:
                del self._backlog[job_id]
            if (run := self._running.get(job_id)) and run.job.epoch == epoch:
                run.stale = True
                run.kill_at = now

    def _lose(self, reason: str, now: float) -> None:
        self._lost = self._ending = reason
        self._lease_until = math.inf
        self._backlog.clear()
        self._drop([(job_id, run.job.epoch) for job_id, run in self._running.items()], now)

    def _drain(self, reason: str, now: float, actions: list[Action], at_once: bool = False) -> None:
        self._ending = self._ending or reason
        for waiting in self._backlog.values():
            self._report(waiting.job, None, now)
        self._backlog.clear()
        for run in self._running.values():
            if not run.timed_out and not run.stale:
                run.timed_out = self._ending
                self._tell_to_end(run, now, actions)
            if at_once:
                run.kill_at = now

    # --- what follows

    def _conclude_terminated(self, now: float) -> None:
        for job_id, run in list(self._running.items()):
            known = run.timed_out or run.killed or run.stale or run.conclude_at <= now
            if run.terminated is not None and known:
                self._conclude(job_id, run.terminated, False, now)

    def _end_overdue(self, now: float, actions: list[Action]) -> None:
        for job_id, run in self._running.items():
            if run.kill_at <= now:
                run.kill_at = math.inf
                actions.append(Kill(job_id, signal.SIGKILL))

    def _start_jobs(self, now: float, actions: list[Action]) -> None:
        hopeless: set[Need] = set()
        for job_id in list(self._backlog) if self._anything_free else ():
            waiting = self._backlog[job_id]
            if waiting.job.wall_time_min * 60 > self._drain_at - now:
                del self._backlog[job_id]
                self._report(waiting.job, None, now)
                continue
            # A job that comes back to us waits until nothing is left of its last run.
            blocked = waiting.need in hopeless or job_id in self._running
            placement = None if blocked else place(self._nodes, waiting.need)
            if placement is None:
                if not hopeless and now - waiting.since > self._terms.patience:
                    return  # what becomes free is for this one
                hopeless.add(waiting.need)
                continue
            del self._backlog[job_id]
            self._nodes = occupy(self._nodes, placement)
            self._running[job_id] = _Running(waiting.job, placement)
            self._usual = waiting.need
            self._rate.count(now)
            self._report(waiting.job, JobState.RUNNING, now, {"app": waiting.job.app_digest[:_SHORT]})
            actions.append(Start(waiting.job, placement))
            if not self._anything_free:
                return

    def _ask_for_jobs(self, now: float, actions: list[Action]) -> None:
        if self._acquiring or self._ending:
            return
        free = room(self._nodes, self._usual) if self._may_pass(now) else 0
        ahead = int(self._rate.at(now) * self._terms.prefetch)
        wanted = min(free + max(0, ahead - len(self._backlog)), MAX_BULK)
        # Work held in advance is replenished when half of it is gone, so that requests are few and full.
        if wanted > 0 and (free or wanted >= ahead / 2):
            self._acquiring = True
            self._asked_at = now
            left = self._drain_at - now
            actions.append(Acquire(wanted, None if math.isinf(left) else int(left / 60)))

    def _may_pass(self, now: float) -> bool:
        """Whether what is free is for jobs that are not here yet. Those in the backlog do not fit; there are not to be
        so many that other launchers have nothing, and the first of them has its patience."""
        first = next(iter(self._backlog.values()), None)
        patient = first is None or now - first.since <= self._terms.patience
        return patient and len(self._backlog) < self._most_waiting

    def _send(self, now: float, actions: list[Action]) -> None:
        # While more work waits here, ends may linger too: nobody can be waiting to send us the next job, and the
        # service is spared many small batches.
        if not self._lost and (reports := self._outbox.take(now, patient=bool(self._backlog))):
            actions.append(Send(tuple(reports)))

    def _exit_when_done(self, actions: list[Action]) -> None:
        done = self._ending and not self._running and (self._lost or not len(self._outbox))
        if done and not self._exited:
            self._exited = True
            actions.append(Exit(self._ending, lost=bool(self._lost)))

    @property
    def _anything_free(self) -> bool:
        return any(node.occupancy for node in self._nodes)

    @property
    def _idle_until(self) -> float:
        """When it has been without work for too long; infinity while it has some, or has not asked for any."""
        if self._running or self._backlog or self._ending or not self._acquiring:
            return math.inf
        return max(self._idle_since + self._terms.idle, self._asked_at + _ANSWER_TIME)

    def _fail(self, job: LeasedJob, error: str, now: float) -> None:
        self._report(job, JobState.RUNNING, now)
        self._report(job, JobState.RUN_ERROR, now, {"error": error}, Result(ok=False, error=error, reason="exit"))

    def _report(
        self,
        job: LeasedJob,
        state: JobState | None,
        now: float,
        data: dict[str, Any] | None = None,
        result: Result | None = None,
    ) -> None:
        at = datetime.fromtimestamp(self._epoch + now, UTC)
        report = Report(job_id=job.id, epoch=job.epoch, state=state, timestamp=at, data=data or {}, result=result)
        # A short task has ended soon after it began, and then one request tells both.
        self._outbox.put(report, now, urgent=state is not JobState.RUNNING)


class _Rate:
    """Starts per second, over about the last half second."""

    _MEMORY = 0.5

    def __init__(self, now: float) -> None:
        self._weight = 0.0
        self._at = now

    def count(self, now: float) -> None:
        self._weight = self.at(now) * self._MEMORY + 1
        self._at = now

    def at(self, now: float) -> float:
        return self._weight * math.exp((self._at - now) / self._MEMORY) / self._MEMORY
