"""Moving jobs: every change of a job's state goes through `Moves`, with all that belongs to it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from balsam_exec.model.errors import Conflict
from balsam_exec.model.events import Kind
from balsam_exec.model.hooks import AT_SITE
from balsam_exec.model.jobs import KILLED
from balsam_exec.model.states import (
    FAILURES,
    RUNNABLE,
    TERMINAL,
    WAITING,
    JobState,
    OnParentFailure,
    Step,
    settle,
)
from balsam_exec.model.transfers import TransferState
from balsam_exec.server.service.dependents import Cause, Change, Dependents, brief
from balsam_exec.server.service.unit import Unit, hooks_at, orders_for, work_at
from balsam_exec.server.store import jobs as store
from balsam_exec.server.store.jobs import JobRow

_ALL_OF_A_RUN = [state.value for state in TransferState]
#: Where its site makes a job ready to run.
_PREPARING = frozenset({JobState.READY, JobState.STAGED_IN})


class Moves:
    """Collects the moves of one transaction. `flush` writes them, and moves the jobs below: they become free when all
    their parents finished, and fail or wait again with one of them.

    Whether a hop is legal is for the caller to check (`model.states.check`): it knows who asks.
    """

    def __init__(self, unit: Unit) -> None:
        self._unit = unit
        self._jobs: dict[int, JobRow] = {}  # to be written
        self._known: dict[int, JobRow] = {}  # these, and their children
        self._dependents = Dependents(unit.connection, self._known)
        self._epochs: dict[int, int] = {}
        self._runs: dict[int, int] = {}
        self._moved: dict[int, JobState] = {}  # from where, as far as their children know
        self._lost: dict[int, JobRow] = {}  # those that cannot run, for a parent has failed
        self._told: dict[int, int] = {}  # child -> the parent on whose account it moves
        self._errors: dict[int, str] = {}
        self._results: list[tuple[Any, ...]] = []  # of those that failed for a parent
        self._restarted: set[int] = set()
        self._anew: set[int] = set()  # those that have to be prepared once more
        self._staging: dict[str, set[int]] = {"in": set(), "out": set()}

    def hop(self, job: JobRow, target: JobState, *, at: int | None = None, data: Any = None) -> None:
        """Move the job to `target`, and on to where it comes to rest."""
        if job.state in AT_SITE and target in TERMINAL:
            self._unit.topics.add(hooks_at(job.site_id))  # its agent may be at it
        self._step(job, target, at, data)
        self._settle(job, at)

    def _settle(self, job: JobRow, at: int | None, *, killed: bool = False) -> None:
        while (rest := _rest(job, killed=killed)) is not job.state:  # a second time where it is restarted
            data = KILLED if rest is JobState.USER_KILLED else None
            self._step(job, rest, at and max(at, self._unit.now), data)
        self._arrived(job)

    def _arrived(self, job: JobRow) -> None:
        """What follows from where a job has come to rest."""
        if job.state in RUNNABLE:
            self._unit.topics.add(work_at(job.site_id))
        elif job.state in AT_SITE:
            self._unit.topics.add(hooks_at(job.site_id))
        if job.state is JobState.READY:
            self._staging["in"].add(job.id)
        elif job.state is JobState.POSTPROCESSED:
            self._staging["out"].add(job.id)
        elif job.state is JobState.AWAITING_PARENTS and job.is_lost:
            self._lost[job.id] = job

    def free(
        self, job: JobRow, target: JobState | None, *, taken: bool, at: int | None = None, data: Any = None
    ) -> None:
        """End the job's lease, `taken` from its holder, who is then refused, or given back by it.

        The job moves to `target` (None: is free where it stands), and on; to USER_KILLED where that was ordered.
        """
        self._jobs[job.id] = job
        killed, job.kill_requested, job.session_id = job.kill_requested, False, None
        if taken:
            self._take(job)
        if job.state in RUNNABLE:  # it was not started
            job.num_runs -= 1
            self._runs[job.id] = -1
        if target is not None:
            self._step(job, target, at, data)
        self._settle(job, at, killed=killed)

    def kill(self, job: JobRow) -> None:
        """Kill a job that has not ended: at once, or by order to the launcher that holds it."""
        if job.session_id is None:
            self.hop(job, JobState.USER_KILLED, data=KILLED)
        else:
            self._jobs[job.id] = job
            job.kill_requested = True
            self._unit.topics.add(orders_for(job.session_id))

    def delete(self, jobs: Iterable[JobRow]) -> None:
        """Tell the log and their children that these are gone. Raises Conflict where one is held for them."""
        changes = {}
        for job in jobs:
            self._dependents.deleted.add(job.id)
            self._unit.record(job.owner_id, Kind.JOB, job.id, job.site_id, job.state, "deleted", marks=job.tag_marks)
            self._unit.count(job.owner_id, job.site_id, job.state, -1)
            self._unit.tags[job.id] = None
            self._known[job.id] = job
            self._dependents.causes[job.id] = Cause(job.id, "deleted")
            changes[job.id] = Change.of_deletion(job.state)
        unfinished = {job_id: change for job_id, change in changes.items() if change.pending}
        for child, parent_id in self._dependents.count(unfinished):
            self._orphan(child, parent_id)

    def _orphan(self, child: JobRow, parent_id: int) -> None:
        """One of its parents is deleted, and had not finished."""
        if child.state is not JobState.AWAITING_PARENTS:
            if child.root_cause is not None:  # what it failed for will not be restarted
                self._jobs[child.id] = child
                child.root_cause = None
        elif child.on_parent_failure == OnParentFailure.FAIL:
            self._fail(child, parent_id, self._dependents.causes[parent_id])
            child.root_cause = None
        elif child.on_parent_failure == OnParentFailure.HOLD:
            raise Conflict(
                f"job {child.id} is held for job {parent_id}: delete or kill that too, or give it other parents",
                job_ids=[child.id],
            )
        else:
            self.reconsider(child)

    def adopt(self, job: JobRow, parents: Collection[JobState]) -> None:
        """The job has other parents now, in these states."""
        unfinished = sum(state is not JobState.JOB_FINISHED for state in parents)
        self._known[job.id] = job
        self._dependents.recount(job, unfinished, sum(state in FAILURES for state in parents))

    def reconsider(self, job: JobRow) -> None:
        """Move a job that has not started on, or back, to where its parents have it be."""
        self._known[job.id] = job
        if job.session_id is not None:
            return
        if job.root_cause is not None and not job.is_lost:
            job.root_cause = None
            self._restarted.add(job.id)
            self._step(job, JobState.AWAITING_PARENTS, None, self._why_revived(job))
            self._settle(job, None)
        elif job.state in WAITING and (_rest(job) is not job.state or job.is_lost):
            self._settle(job, None)

    def _why_revived(self, job: JobRow) -> dict[str, str]:
        parent = self._known.get(self._told.get(job.id, 0))
        if parent is None or parent.state in TERMINAL:
            return {"reason": "it does not depend on what failed any more"}
        return {"reason": f"its parent {parent.id} is to run again"}

    def flush(self) -> None:
        connection, now = self._unit.connection, self._unit.now
        self._descend()
        self._dependents.write()
        if self._restarted:
            restarted = sorted(self._restarted)
            store.delete_results(connection, restarted)
            store.move_transfers(connection, restarted, "out", _ALL_OF_A_RUN, TransferState.AWAITING_JOB.value)
        if self._anew:
            store.move_transfers(connection, sorted(self._anew), "in", _ALL_OF_A_RUN, TransferState.AWAITING_JOB.value)
        for direction, ids in self._staging.items():
            if ids:
                waiting = [TransferState.AWAITING_JOB.value]
                store.move_transfers(connection, sorted(ids), direction, waiting, TransferState.PENDING.value)
        store.write_states(connection, self._with_growth(), now)
        self._unit.insert_results(self._results)

    def _descend(self) -> None:
        """Move the jobs below those that moved, until all of them are where their parents have them be."""
        while self._moved or self._lost:
            moved, self._moved = self._moved, {}
            changes = {job_id: Change.between(before, self._jobs[job_id].state) for job_id, before in moved.items()}
            changes = {job_id: change for job_id, change in changes.items() if any(change)}
            if changes:
                for child, parent_id in self._dependents.count(changes):
                    if parent_id in self._dependents.causes or child.id not in self._told:
                        self._told[child.id] = parent_id
                    self.reconsider(child)
            elif self._lost:  # and now all counts are right
                self._fail_lost()

    def _fail_lost(self) -> None:
        lost = [job for job in self._lost.values() if job.state is JobState.AWAITING_PARENTS and job.is_lost]
        self._lost.clear()
        blamed = self._dependents.blame(lost, self._told)
        for job in lost:
            self._fail(job, *blamed[job.id])

    def _fail(self, job: JobRow, parent_id: int, cause: Cause) -> None:
        """On account of its parent."""
        self._step(job, JobState.FAILED, None, cause.told_by(parent_id))
        job.root_cause = cause.root_id
        self._dependents.causes[job.id] = cause
        self._results.append(cause.result(job.id, parent_id))

    def _with_growth(self) -> Iterable[tuple[JobRow, int, int]]:
        return ((job, self._epochs.get(job.id, 0), self._runs.get(job.id, 0)) for job in self._jobs.values())

    def _take(self, job: JobRow) -> None:
        """From whoever is at it: what he says of it from now on is refused."""
        job.epoch += 1
        self._epochs[job.id] = self._epochs.get(job.id, 0) + 1

    def _step(self, job: JobRow, target: JobState, at: int | None, data: Any) -> None:
        unit, source = self._unit, job.state
        self._jobs[job.id] = self._known[job.id] = job
        self._moved.setdefault(job.id, source)
        if target is JobState.RESTART_READY and job.num_runs:
            data = {**(data or {}), "retry": job.num_runs}
        unit.record(job.owner_id, Kind.JOB, job.id, job.site_id, source, target, at=at, data=data, marks=job.tag_marks)
        unit.count(job.owner_id, job.site_id, source, -1)
        unit.count(job.owner_id, job.site_id, target, +1)
        job.state = target
        if target in FAILURES:
            error = brief(data) or self._errors.get(job.id, "")
            self._dependents.causes[job.id] = Cause(job.id, target, error)
        elif target is JobState.RUN_ERROR:
            self._errors[job.id] = brief(data)
        elif target is JobState.RESTART_READY:
            job.return_code = job.root_cause = None
            self._restarted.add(job.id)
        if source in FAILURES:
            self._dependents.causes.pop(job.id, None)
        if source in _PREPARING and target in (JobState.AWAITING_PARENTS, *TERMINAL):
            self._take(job)
            unit.topics.add(hooks_at(job.site_id))
        if target is JobState.AWAITING_PARENTS or (source is JobState.RESTART_READY and target in WAITING):
            self._anew.add(job.id)


def _rest(job: JobRow, *, killed: bool = False) -> JobState:
    return settle(job.state, job.steps, job.waits_for, has_run=job.num_runs > 0, killed=killed)


def fail_lost(unit: Unit, owner_id: int, ids: Iterable[int]) -> None:
    """Fail jobs that were created when parents of theirs had failed."""
    moves = Moves(unit)
    for job in store.lock(unit.connection, owner_id, ids).values():
        moves.reconsider(job)
    moves.flush()


def steps_of(app_steps: Step, directions: Iterable[str]) -> Step:
    """A job's steps: its app's, and the transfers it has."""
    steps = app_steps
    for direction in directions:
        steps |= Step.STAGE_IN if direction == "in" else Step.STAGE_OUT
    return steps
