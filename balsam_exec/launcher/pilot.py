"""What a launcher decides. `Pilot.step` takes what happened and answers what to do; it does no I/O and has no clock.

Events and actions are in `events`. Times are seconds of a monotonic clock; `deadline` says when a step is due even if
nothing happens.
"""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from balsam_exec.launcher.asker import Asker, Habits
from balsam_exec.launcher.events import (
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
    StopAsking,
)
from balsam_exec.launcher.outbox import Lease, Outbox
from balsam_exec.launcher.placement import Need, Node, Placement, is_any_free, obstacle, occupy, place, vacate
from balsam_exec.model.jobs import KILLED, Affinity, Result
from balsam_exec.model.sessions import LeasedJob, Report
from balsam_exec.model.states import JobState
from balsam_exec.platform.nodes import NodeSpec

log = logging.getLogger(__name__)

#: Seconds after which an acquire that is not answered means that there is nothing to do.
_ANSWER_TIME = 1.0
#: Seconds within which the end of an allocation, or of one of its nodes, reaches all that runs there, jobs and
#: launcher. On a busy machine the signals come half a second apart.
_TOGETHER = 1.0
#: Return codes of what such an end has ended, itself or through a shell.
_TERMINATED = frozenset({-signal.SIGTERM, 128 + signal.SIGTERM, -signal.SIGKILL, 128 + signal.SIGKILL})
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
    habits: Habits = field(default_factory=Habits)  #: of asking for jobs


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


@dataclass(frozen=True, slots=True)
class _Verdict:
    """On a job that has ended as it would with its allocation: at `due` that is its own affair, unless the allocation's
    end has come to us too."""

    job: LeasedJob
    outcome: Outcome
    due: float


class Pilot:
    """The state of one launcher, changed by `step` alone."""

    def __init__(
        self, nodes: Sequence[NodeSpec], terms: Terms, now: float, epoch: float, affinity: Affinity = "none"
    ) -> None:
        """`epoch` is the Unix time when the monotonic clock was 0; `affinity` that of jobs that do not say."""
        self._specs = tuple(nodes)
        self._nodes = tuple(map(Node.empty, nodes))
        self._terms = terms
        self._epoch = epoch
        self._affinity = affinity
        self._backlog: dict[int, _Waiting] = {}
        self._claimed_id = 0  #: the last job for which room was made
        self._running: dict[int, _Running] = {}
        self._verdicts: dict[Lease, _Verdict] = {}
        self._doomed: frozenset[Lease] = frozenset()  #: to be killed; some may have ended, or be on their way to us
        self._outbox = Outbox(terms.linger)
        self._confirmed: set[Lease] = set()  #: with reports, since there was an answer that was the last to its acquire
        self._asker = Asker(len(self._specs), terms.habits, now)
        self._ending = ""
        self._ending_since = now
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
            due += (self._drain_at, self._backlog_due, self._asker.due(bool(self._running)))
        due += (run.kill_at for run in self._running.values())
        due += (verdict.due for verdict in self._verdicts.values())
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
        self._conclude_verdicts(now)
        self._end_overdue(now, actions)
        self._start_jobs(now, actions)
        self._give_back(now)
        if self._asker.is_enough(bool(self._ending)):
            actions.append(StopAsking())
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
                self._confirmed |= self._outbox.delivered()
            case Arrived(jobs, more, again):
                self._arrive([job for job in jobs if not (again and self._is_known(job))], now, more)
            case Alive(kill):
                self._lease_until = now + self._terms.ttl
                self._kill(kill, now, actions)
            case Stale(job_ids):
                self._drop(self._outbox.stale(job_ids, now), now)
            case Refused(why):
                if given_up := self._outbox.refused(why, now):
                    log.error("the service refuses to record %s of job %d: %s", given_up.state, given_up.job_id, why)
            case Drain(reason, at_once):
                # One that comes at once is the same, by another way: the guardians hand on what they get.
                impatient = bool(self._ending) and now - self._ending_since > _TOGETHER
                self._drain(reason, now, actions, at_once or impatient)
            case Lost(reason):
                self._lose(reason, now)

    def _is_known(self, job: LeasedJob) -> bool:
        """Whether this lease of the job has come to us before, and the service may not have heard of its end when it
        gave it again."""
        ours = [self._backlog.get(job.id), self._running.get(job.id)]
        if any(each is not None and each.job.epoch == job.epoch for each in ours):
            return True
        lease = job.id, job.epoch
        return lease in self._verdicts or lease in self._confirmed or self._outbox.has(lease)

    def _arrive(self, jobs: Sequence[LeasedJob], now: float, more: bool) -> None:
        claimed = not more and self._asker.answered()
        if not more:
            self._confirmed.clear()
        for job in jobs:
            if self._ending:
                self._report(job, None, now)
                continue
            if (job.id, job.epoch) in self._doomed:
                self._report(job, JobState.USER_KILLED, now, KILLED)
                continue
            need = Need.of(job, self._affinity)
            if why := obstacle(self._specs, need):
                self._fail(job, f"the job cannot run here: {why}", now)
            else:
                self._backlog[job.id] = _Waiting(job, need, now)
                self._claimed_id = job.id if claimed else self._claimed_id
        if claimed and self._claim is None:
            self._asker.claim_is_over(now)

    def _end(self, job_id: int, outcome: Outcome, unasked: bool, now: float) -> None:
        run = self._running.pop(job_id)
        self._nodes = vacate(self._nodes, run.placement)
        self._asker.ended(now)
        self._idle_since = now
        perhaps_lost = self._is_perhaps_lost(run.job, outcome)
        if perhaps_lost and not (run.timed_out or run.killed or run.stale):
            self._verdicts[run.job.id, run.job.epoch] = _Verdict(run.job, outcome, now + _TOGETHER)
        elif not run.stale:
            # The allocation's end may have come to the job before it came to us.
            by_itself = unasked and not (perhaps_lost and (run.timed_out or _was_terminated(outcome)))
            self._conclude(run.job, outcome, now, "" if by_itself else run.timed_out, run.killed and not by_itself)

    def _is_perhaps_lost(self, job: LeasedJob, outcome: Outcome) -> bool:
        """Whether its allocation or its node may have ended it, and it has not failed by itself."""
        failed = outcome.state is JobState.RUN_ERROR and outcome.result.reason != "exception"
        # What starts ranks says in many ways that a node of theirs is gone.
        is_spread = job.ranks > 1 or len(self._specs) > 1
        return failed and (_was_terminated(outcome) or (is_spread and outcome.result.return_code is not None))

    def _conclude(
        self, job: LeasedJob, outcome: Outcome, now: float, timed_out: str = "", killed: bool = False
    ) -> None:
        """Report how it ended: by itself, unless it was told to and has no value that came before."""
        if killed and not outcome.result.value:
            self._report(job, JobState.USER_KILLED, now, {**outcome.data, **KILLED})
        elif timed_out and not outcome.result.value:
            self._report(job, JobState.RUN_TIMEOUT, now, {"error": timed_out})
        else:
            result = None if outcome.state is JobState.RUN_TIMEOUT else outcome.result
            self._report(job, outcome.state, now, outcome.data, result)

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
        if math.isinf(run.kill_at):
            run.kill_at = now + self._terms.grace
            actions.append(Kill(run.job.id, signal.SIGTERM))

    def _drop(self, leases: Collection[Lease], now: float) -> None:
        """These leases are over; the jobs may have come back to us under others."""
        self._outbox.forget(leases)
        for job_id, epoch in leases:
            self._verdicts.pop((job_id, epoch), None)
            if (waiting := self._backlog.get(job_id)) and waiting.job.epoch == epoch:
                del self._backlog[job_id]
            if (run := self._running.get(job_id)) and run.job.epoch == epoch:
                run.stale = True
                run.kill_at = now

    def _lose(self, reason: str, now: float) -> None:
        self._lost = self._ending = reason
        self._lease_until = math.inf
        self._backlog.clear()
        self._verdicts.clear()
        self._drop([(job_id, run.job.epoch) for job_id, run in self._running.items()], now)

    def _drain(self, reason: str, now: float, actions: list[Action], at_once: bool = False) -> None:
        if not self._ending:
            self._ending, self._ending_since = reason, now
        for waiting in list(self._backlog.values()):
            self._release(waiting, now)
        for run in self._running.values():
            if not run.timed_out and not run.stale:
                run.timed_out = self._ending
                self._tell_to_end(run, now, actions)
            if at_once:
                run.kill_at = now

    # --- what follows

    def _conclude_verdicts(self, now: float) -> None:
        for lease, verdict in list(self._verdicts.items()):
            killed = lease in self._doomed
            if killed or self._ending or verdict.due <= now:
                del self._verdicts[lease]
                self._conclude(verdict.job, verdict.outcome, now, self._ending, killed)

    def _end_overdue(self, now: float, actions: list[Action]) -> None:
        for job_id, run in self._running.items():
            if run.kill_at <= now:
                run.kill_at = math.inf
                actions.append(Kill(job_id, signal.SIGKILL))

    def _start_jobs(self, now: float, actions: list[Action]) -> None:
        hopeless: set[Need] = set()
        for job_id in list(self._backlog) if is_any_free(self._nodes) else ():
            waiting = self._backlog[job_id]
            if waiting.job.wall_time_min * 60 > self._drain_at - now:
                self._release(waiting, now)
                continue
            # A job that comes back to us waits until nothing is left of its last run.
            blocked = waiting.need in hopeless or job_id in self._running
            placement = None if blocked else place(self._nodes, waiting.need)
            if placement is not None:
                self._start(waiting, placement, now, actions)
                if not is_any_free(self._nodes):
                    return
            elif job_id not in self._running:
                hopeless.add(waiting.need)
        self._asker.did_not_fit(hopeless)

    def _start(self, waiting: _Waiting, placement: Placement, now: float, actions: list[Action]) -> None:
        job = waiting.job
        del self._backlog[job.id]
        self._nodes = occupy(self._nodes, placement)
        self._running[job.id] = _Running(job, placement)
        self._asker.started(waiting.need)
        if job.id == self._claimed_id:
            self._asker.claim_is_over(now)
        self._report(job, JobState.RUNNING, now, {"app": job.app_digest[:_SHORT]})
        actions.append(Start(job, placement))

    def _give_back(self, now: float) -> None:
        """What has waited here for so long that others may do it sooner; where room is made for one, all others."""
        habits, claim = self._terms.habits, self._claim
        if claim is None:
            self._asker.nothing_claimed(now)
            while (first := next(iter(self._backlog.values()), None)) and now >= first.since + habits.hold:
                self._release(first, now)
            return
        for waiting in [each for each in self._backlog.values() if each is not claim]:
            self._release(waiting, now)
        if now < claim.since + habits.offer:
            self._asker.claim(claim.need, now)
        else:
            self._asker.offer(now)
            self._release(claim, now)

    def _release(self, waiting: _Waiting, now: float) -> None:
        del self._backlog[waiting.job.id]
        self._asker.gave_back()
        self._report(waiting.job, None, now)

    def _ask_for_jobs(self, now: float, actions: list[Action]) -> None:
        if self._ending:
            return
        if ask := self._asker.next(self._nodes, len(self._backlog), bool(self._running), now):
            left = self._drain_at - now
            actions.append(replace(ask, max_wall_time_min=None if math.isinf(left) else int(left / 60)))

    @property
    def _claim(self) -> _Waiting | None:
        """The job for which room is made."""
        return self._backlog.get(self._claimed_id)

    @property
    def _backlog_due(self) -> float:
        """When something in the backlog is to be given back."""
        first, habits = next(iter(self._backlog.values()), None), self._terms.habits
        if first is None:
            return math.inf
        return first.since + (habits.offer if first is self._claim else habits.hold)

    def _send(self, now: float, actions: list[Action]) -> None:
        # While more work waits here, ends may linger too: nobody can be waiting to send us the next job, and the
        # service is spared many small batches.
        if not self._lost and (reports := self._outbox.take(now, patient=bool(self._backlog))):
            actions.append(Send(tuple(reports), self._asker.told()))

    def _exit_when_done(self, actions: list[Action]) -> None:
        done = self._ending and not self._running and (self._lost or not len(self._outbox))
        if done and not self._exited:
            self._exited = True
            actions.append(Exit(self._ending, lost=bool(self._lost)))

    @property
    def _idle_until(self) -> float:
        """When it has been without work for too long; infinity while it has some, or has not asked for any."""
        if self._running or self._verdicts or self._backlog or self._ending or self._asker.asked is None:
            return math.inf
        return max(self._idle_since + self._terms.idle, self._asker.asked_at + _ANSWER_TIME)

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


def _was_terminated(outcome: Outcome) -> bool:
    return outcome.result.return_code in _TERMINATED
