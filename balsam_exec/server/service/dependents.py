"""The children of the jobs that a transaction moves: what they count of their parents, and whom they have to blame."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple

from balsam_exec.model.base import Json
from balsam_exec.model.states import FAILURES, JobState
from balsam_exec.server.store import edges as store
from balsam_exec.server.store.database import Connection
from balsam_exec.server.store.jobs import JobRow

#: So many generations are followed one by one, as far as they change. Then it is worthwhile to ask for all that are
#: left, so that a long chain takes no more statements than a short one.
_PATIENCE = 8
_BRIEF = 300


class Change(NamedTuple):
    """By how much more the children of a job count it among the unfinished ones, and among the failed ones."""

    pending: int
    failed: int

    @classmethod
    @cache  # of few pairs of states, for every job that moves
    def between(cls, before: JobState, after: JobState) -> Change:
        pending = (after is not JobState.JOB_FINISHED) - (before is not JobState.JOB_FINISHED)
        return cls(pending, (after in FAILURES) - (before in FAILURES))

    @classmethod
    def of_deletion(cls, state: JobState) -> Change:
        return cls(-(state is not JobState.JOB_FINISHED), -(state in FAILURES))


class Cause(NamedTuple):
    """Why the children of a job that has failed cannot run."""

    root_id: int  #: the job that failed first
    state: str  #: its state, or "deleted"
    error: str = ""  #: in a line

    def told_by(self, parent_id: int) -> Json:
        """The data of the event in which a child of `parent_id` fails."""
        what = "is deleted" if self.state == "deleted" else f"is {self.state}"
        reason = f"its parent {self.root_id} {what}"
        if parent_id != self.root_id:
            reason = f"its parent {parent_id} failed because job {self.root_id} {what}"
        root: Json = {"job_id": self.root_id, "state": self.state}
        return {"reason": reason, "root_cause": {**root, "error": self.error} if self.error else root}

    def result(self, job_id: int, parent_id: int) -> tuple[Any, ...]:
        """The row of the result of that child."""
        said = self.told_by(parent_id)["reason"]
        error = f"job {job_id} was not run: {said}"
        return job_id, False, None, None, f"{error}: {self.error}" if self.error else error, "parent", None


def brief(data: Mapping[str, Any] | None) -> str:
    """In a line what an event, or a result, says of an error."""
    data = data or {}
    text = str(data.get("error") or data.get("reason") or "").strip()
    lines = text.splitlines() or [""]
    code = data.get("return_code")
    if "Traceback (most recent call last)" in text:
        return lines[-1][:_BRIEF]
    return f"exit code {code}" if isinstance(code, int) and code > 0 else lines[0][:_BRIEF]


class Dependents:
    """Loads and locks the jobs below those that move, as far as it is asked for, and keeps their counts."""

    def __init__(self, connection: Connection, known: dict[int, JobRow]) -> None:
        """`known` has the jobs that the transaction has locked; it grows."""
        self._connection = connection
        self._known = known
        self._children: dict[int, list[int]] = {}
        self._changes: dict[int, Change] = {}
        self._rounds = 0
        #: Of the jobs that fail in this transaction.
        self.causes: dict[int, Cause] = {}
        #: Those that the transaction deletes.
        self.deleted: set[int] = set()

    def count(self, changes: Mapping[int, Change]) -> list[tuple[JobRow, int]]:
        """Let the children of some jobs, by id, count these changes. Each child, and a parent to tell of in whatever
        it does now: one that has failed, if there is one."""
        self._load(changes)
        told: dict[int, int] = {}
        for parent_id, (pending, failed) in changes.items():
            for child_id in self._children[parent_id]:
                child = self._known.get(child_id)
                if child is None or child_id in self.deleted:
                    continue
                child.pending_parents += pending
                child.failed_parents += failed
                before = self._changes.get(child_id, Change(0, 0))
                self._changes[child_id] = Change(before.pending + pending, before.failed + failed)
                if failed > 0 or child_id not in told:
                    told[child_id] = parent_id
        return [(self._known[child_id], parent_id) for child_id, parent_id in told.items()]

    def recount(self, job: JobRow, pending: int, failed: int) -> None:
        """The job has other parents now, of which so many are unfinished, and so many have failed."""
        before = self._changes.get(job.id, Change(0, 0))
        self._changes[job.id] = Change(
            before.pending + pending - job.pending_parents, before.failed + failed - job.failed_parents
        )
        job.pending_parents, job.failed_parents = pending, failed

    def blame(self, jobs: Collection[JobRow], told: Mapping[int, int]) -> dict[int, tuple[int, Cause]]:
        """For each of some jobs a parent that has failed, and of what. `told` has such a parent of some of them."""
        found = {job.id: told[job.id] for job in jobs if told.get(job.id) in self.causes}
        if left := [job.id for job in jobs if job.id not in found]:
            known = self._known.values()
            found |= store.failed_parents(
                self._connection, left, but=[job.id for job in known if job.state not in FAILURES]
            )
        if unknown := set(found.values()) - self.causes.keys():
            self.causes |= causes(self._connection, unknown)
        return {job_id: (parent_id, self.causes[parent_id]) for job_id, parent_id in found.items()}

    def write(self) -> None:
        store.count(self._connection, self._changes)

    def _load(self, ids: Iterable[int]) -> None:
        """See to it that the children of these jobs, which are locked, are known and locked."""
        if not (missing := {job_id for job_id in ids if job_id not in self._children}):
            return
        self._rounds += 1
        if self._rounds > _PATIENCE:
            followers = store.followers(self._connection, missing)
            self._lock(followers)
            missing |= {job_id for job_id in followers if job_id in self._known} - self._children.keys()
        self._children.update((job_id, []) for job_id in missing)
        for parent_id, child_id in store.children(self._connection, missing):
            self._children[parent_id].append(child_id)
        self._lock({child_id for job_id in missing for child_id in self._children[job_id]})

    def _lock(self, ids: Iterable[int]) -> None:
        if unknown := set(ids) - self._known.keys():
            self._known.update((job.id, job) for job in store.lock(self._connection, unknown))


def causes(connection: Connection, ids: Iterable[int]) -> dict[int, Cause]:
    """Of jobs that have failed before."""
    found = {}
    for job_id, failure in store.failures(connection, ids).items():
        start, end = failure.error_start or "", failure.error_end or ""
        text = f"{start}\n{end}" if "Traceback" in start else start
        found[job_id] = Cause(
            failure.root_id, failure.state, brief({"error": text, "return_code": failure.return_code})
        )
    return found
