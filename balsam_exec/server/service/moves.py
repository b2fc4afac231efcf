"""Moving jobs: every change of a job's state goes through `Moves`, with all that belongs to it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from balsam_exec.model.events import Kind
from balsam_exec.model.jobs import KILLED
from balsam_exec.model.states import RUNNABLE, JobState, Step, settle
from balsam_exec.model.transfers import TransferState
from balsam_exec.server.service.unit import Unit, orders_for, work_at
from balsam_exec.server.store import jobs as store
from balsam_exec.server.store.jobs import JobRow

_FINISHED = JobState.JOB_FINISHED
_ALL_OF_A_RUN = [state.value for state in TransferState]


class Moves:
    """Collects the moves of one transaction; `flush` writes them and frees the children of parents that finished.

    Whether a hop is legal is for the caller to check (`model.states.check`): it knows who asks.
    """

    def __init__(self, unit: Unit) -> None:
        self._unit = unit
        self._jobs: dict[int, JobRow] = {}
        self._epochs: dict[int, int] = {}
        self._finished: set[int] = set()
        self._unfinished: set[int] = set()
        self._restarted: set[int] = set()
        self._staging: dict[str, set[int]] = {"in": set(), "out": set()}

    def hop(self, job: JobRow, target: JobState, *, at: int | None = None, data: Any = None) -> None:
        """Move the job to `target`, and on to where it comes to rest."""
        self._step(job, target, at, data)
        self._settle(job, at)

    def _settle(self, job: JobRow, at: int | None, *, killed: bool = False) -> None:
        rest = settle(job.state, job.steps, job.pending_parents, killed=killed)
        if rest is not job.state:
            data = KILLED if rest is JobState.USER_KILLED else None
            self._step(job, rest, at and max(at, self._unit.now), data)
        self._arrived(job)

    def _arrived(self, job: JobRow) -> None:
        """What follows from where a job has come to rest."""
        if job.state in RUNNABLE:
            self._unit.topics.add(work_at(job.site_id))
        elif job.state is JobState.READY:
            self._staging["in"].add(job.id)
        elif job.state is JobState.POSTPROCESSED:
            self._staging["out"].add(job.id)

    def free(
        self, job: JobRow, target: JobState | None, *, taken: bool, at: int | None = None, data: Any = None
    ) -> None:
        """End the job's lease, `taken` from its holder, who is then refused, or given back by it.

        The job moves to `target` (None: is free where it stands), and on; to USER_KILLED where that was ordered.
        """
        self._jobs[job.id] = job
        killed, job.kill_requested, job.session_id = job.kill_requested, False, None
        if taken:
            job.epoch += 1
            self._epochs[job.id] = self._epochs.get(job.id, 0) + 1
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

    def flush(self) -> None:
        connection, now = self._unit.connection, self._unit.now
        if self._finished:
            for child in store.change_pending(connection, self._finished, -1):
                self._free_child(child)
        if self._unfinished:
            store.change_pending(connection, self._unfinished, +1)
        if self._restarted:
            restarted = sorted(self._restarted)
            store.delete_results(connection, restarted)
            store.move_transfers(connection, restarted, "out", _ALL_OF_A_RUN, TransferState.AWAITING_JOB.value)
        for direction, ids in self._staging.items():
            if ids:
                waiting = [TransferState.AWAITING_JOB.value]
                store.move_transfers(connection, sorted(ids), direction, waiting, TransferState.PENDING.value)
        store.write_states(connection, self._with_epochs(), now)

    def _free_child(self, child: JobRow) -> None:
        child = self._jobs.get(child.id, child)
        if child.state is JobState.AWAITING_PARENTS and child.pending_parents == 0:
            self.hop(child, settle(child.state, child.steps))

    def _with_epochs(self) -> Iterable[tuple[JobRow, int]]:
        return ((job, self._epochs.get(job.id, 0)) for job in self._jobs.values())

    def _step(self, job: JobRow, target: JobState, at: int | None, data: Any) -> None:
        unit, source = self._unit, job.state
        self._jobs[job.id] = job
        unit.record(job.owner_id, Kind.JOB, job.id, job.site_id, source, target, at=at, data=data, marks=job.tag_marks)
        unit.count(job.owner_id, job.site_id, source, -1)
        unit.count(job.owner_id, job.site_id, target, +1)
        job.state = target
        if target is _FINISHED:
            self._finished.add(job.id)
        elif source is _FINISHED:
            self._unfinished.add(job.id)
        if target is JobState.RESTART_READY:
            job.return_code = None
            self._restarted.add(job.id)


def steps_of(app_steps: Step, directions: Iterable[str]) -> Step:
    """A job's steps: its app's, and the transfers it has."""
    steps = app_steps
    for direction in directions:
        steps |= Step.STAGE_IN if direction == "in" else Step.STAGE_OUT
    return steps
