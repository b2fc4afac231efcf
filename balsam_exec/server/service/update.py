"""Changing, cancelling, killing and deleting jobs: for each request all of it, or nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from balsam_exec.model.errors import Conflict, IllegalTransition, InvalidRequest, NotFound
from balsam_exec.model.jobs import STDOUT, JobBulkPatch, JobPatch
from balsam_exec.model.queries import Query
from balsam_exec.model.states import TERMINAL, TRANSITIONS, WAITING, Actor, JobState, check
from balsam_exec.server.service import jobs as reading
from balsam_exec.server.service import parents
from balsam_exec.server.service.create import app_terms
from balsam_exec.server.service.moves import Moves
from balsam_exec.server.service.sizes import check_size
from balsam_exec.server.service.unit import Unit, tag_marks
from balsam_exec.server.store import dialect, filters, listing
from balsam_exec.server.store import jobs as store
from balsam_exec.server.store.jobs import JobRow
from balsam_exec.server.store.types import encode

#: Fields of a patch that live in `job_payloads`; `tags` has rows of its own besides.
_PAYLOAD = frozenset(
    {"workdir", "tags", "data", "parameters", "arguments", "launch_params", "stdout", "stderr", "input_files"}
)
#: What has a limit to its size.
_ENTITIES = ("arguments", "parameters", "data", "state_data")
#: Output files and their usual names, which are stored as NULL.
_OUTPUTS = {"stdout": STDOUT, "stderr": ""}
#: Fields that may change while a launcher holds the job.
_ANY_TIME = frozenset({"tags", "data"})


def patch_job(unit: Unit, owner_id: int, job_id: int, patch: JobPatch) -> dict[str, Any]:
    """Raises NotFound, IllegalTransition, Conflict (a launcher holds it), ParameterError."""
    _patch_each(unit, owner_id, {job_id: patch})
    return reading.job(unit.connection, owner_id, job_id)


def patch_jobs(unit: Unit, owner_id: int, patches: Sequence[JobBulkPatch]) -> int:
    """Each job its own patch."""
    by_id = {patch.id: patch for patch in patches}
    if len(by_id) < len(patches):
        raise InvalidRequest("a job is named twice: send one patch for each job")
    _patch_each(unit, owner_id, by_id)
    return len(by_id)


def kill_jobs(unit: Unit, owner_id: int, ids: Iterable[int]) -> dict[str, list[int]]:
    """Kill these jobs; what is killed, ordered and over now (`model.jobs.Killed`). Deleted ones are left out."""
    dialect.order_families(unit.connection, owner_id)
    return _kill(unit, store.lock(unit.connection, owner_id, ids).values())


def kill_matching(unit: Unit, owner_id: int, query: Query) -> dict[str, list[int]]:
    """The same for all jobs that match and have not ended. Raises InvalidRequest for a query that matches any job."""
    _refuse_paging(query)
    _require_filter(query, "kill")
    dialect.order_families(unit.connection, owner_id)
    return _kill(unit, store.lock_selected(unit.connection, listing.living(owner_id, query)))


def _kill(unit: Unit, jobs: Iterable[JobRow]) -> dict[str, list[int]]:
    moves = Moves(unit)
    found: dict[str, list[int]] = {"killed": [], "ordered": [], "over": []}
    for job in jobs:
        if job.state not in TERMINAL:
            moves.kill(job)
        if job.session_id is not None:
            found["ordered"].append(job.id)
        else:
            found["killed" if job.state is JobState.USER_KILLED else "over"].append(job.id)
    moves.flush()
    return found


def patch_matching(unit: Unit, owner_id: int, query: Query, patch: JobPatch) -> int:
    """All jobs that match; how many these are."""
    _refuse_paging(query)
    if _may_move(patch):
        dialect.order_families(unit.connection, owner_id)
    jobs = store.lock_selected(unit.connection, listing.matching(owner_id, query))
    moves = Moves(unit)
    _apply(unit, moves, jobs, patch)
    if patch.parent_ids:
        parents.refuse_circles(unit, [job.id for job in jobs])
    moves.flush()
    return len(jobs)


def _patch_each(unit: Unit, owner_id: int, patches: dict[int, Any]) -> None:
    if any(map(_may_move, patches.values())):
        dialect.order_families(unit.connection, owner_id)
    jobs = _locked(unit, owner_id, patches)
    moves = Moves(unit)
    apply_each(unit, moves, ((jobs[job_id], patch) for job_id, patch in patches.items()))
    moves.flush()


def _may_move(patch: JobPatch) -> bool:
    return patch.state is not None or parents.concerned(patch)


def apply_each(unit: Unit, moves: Moves, patches: Iterable[tuple[JobRow, JobPatch]]) -> None:
    """To each of some jobs of one owner, locked, its own patch; equal ones are applied together."""
    same: dict[str, tuple[JobPatch, list[JobRow]]] = {}
    for job, patch in patches:
        same.setdefault(patch.model_dump_json(exclude={"id"}), (patch, []))[1].append(job)
    for patch, jobs in same.values():
        _apply(unit, moves, jobs, patch)
    if adopted := [job.id for patch, jobs in same.values() if patch.parent_ids for job in jobs]:
        parents.refuse_circles(unit, adopted)


def _locked(unit: Unit, owner_id: int, ids: Iterable[int]) -> dict[int, JobRow]:
    wanted = set(ids)
    found = store.lock(unit.connection, owner_id, wanted)
    if absent := sorted(wanted - set(found)):
        raise NotFound(f"there is no job {', '.join(map(str, absent[:10]))}", job_ids=absent[:100])
    return found


def _apply(unit: Unit, moves: Moves, jobs: Sequence[JobRow], patch: JobPatch) -> None:
    """One patch to some jobs of one owner."""
    if not jobs:
        return
    _check_sizes(jobs[0].id, patch, unit.max_entity)
    _change_fields(unit, jobs, patch)
    parents.change_terms(unit, moves, jobs, patch)
    _change_states(moves, jobs, patch)
    if parents.concerned(patch):
        for job in jobs:
            moves.reconsider(job)


def _check_sizes(job_id: int, patch: JobPatch, limit: int) -> None:
    for name in _ENTITIES:
        value = getattr(patch, name)
        check_size(f"the {name} of job {job_id}", value if isinstance(value, bytes) else encode(value), limit)


def _change_states(moves: Moves, jobs: Sequence[JobRow], patch: JobPatch) -> None:
    for job in jobs:
        if patch.state is None or job.state is patch.state:
            continue
        if job.session_id is None:
            _check_hop(job, patch.state)
            moves.hop(job, patch.state, data=patch.state_data)
        elif patch.state is JobState.USER_KILLED:
            moves.kill(job)
        else:
            _check_hop(job, patch.state)
            moves.free(job, patch.state, taken=True, data=patch.state_data)


def _check_hop(job: JobRow, target: JobState) -> None:
    """The API serves users and the agents of their sites alike: what either may do goes."""
    if not {Actor.USER, Actor.SITE} & TRANSITIONS.get((job.state, target), frozenset()):
        try:
            check(job.state, target, Actor.USER)
        except IllegalTransition as error:
            raise IllegalTransition(f"job {job.id}: {error.message}", job_id=job.id) from None


def _change_fields(unit: Unit, jobs: Sequence[JobRow], patch: JobPatch) -> None:
    changes = patch.model_dump(exclude_none=True, exclude={"id", "state", "state_data"})
    if not changes:
        return
    if fixed := sorted(changes.keys() - _ANY_TIME):
        held = [job.id for job in jobs if job.session_id is not None]
        if held:
            raise Conflict(
                f"a launcher holds job {held[0]}: {', '.join(fixed)} can change when it does not", job_ids=held[:100]
            )
    if patch.parameters is not None or patch.arguments is not None:
        for app in app_terms(unit, jobs[0].owner_id, {job.app_id for job in jobs}).values():
            app.check_run(patch.parameters, patch.arguments)
    ids = [job.id for job in jobs]
    payload = {key: value for key, value in changes.items() if key in _PAYLOAD}
    payload |= {key: None for key, usual in _OUTPUTS.items() if payload.get(key) == usual}
    columns = {key: value for key, value in changes.items() if key not in _PAYLOAD and key != "parent_ids"}
    if patch.tags is not None:
        columns["tag_marks"] = tag_marks(patch.tags)
        for job in jobs:
            job.tag_marks = columns["tag_marks"]
    if "wall_time_min" in columns:
        columns["priority"] = -columns["wall_time_min"]
    store.update_fields(unit.connection, ids, columns, payload, unit.now)
    if patch.tags is not None:
        store.replace_tags(unit.connection, jobs[0].owner_id, ids, patch.tags)
        unit.tags.update(dict.fromkeys(ids, patch.tags))


def cancel_jobs(unit: Unit, owner_id: int, ids: Iterable[int]) -> list[int]:
    """Those that were still waiting are now USER_KILLED. What a launcher holds may be running by now: it stays."""
    dialect.order_families(unit.connection, owner_id)
    moves, cancelled = Moves(unit), []
    for job in store.lock(unit.connection, owner_id, ids).values():
        if job.state in WAITING and job.session_id is None:
            check(job.state, JobState.USER_KILLED, Actor.USER)
            moves.hop(job, JobState.USER_KILLED)
            cancelled.append(job.id)
    moves.flush()
    return cancelled


def delete_job(unit: Unit, owner_id: int, job_id: int) -> None:
    """Raises NotFound, Conflict (another job is held for it)."""
    dialect.order_families(unit.connection, owner_id)
    _delete(unit, list(_locked(unit, owner_id, [job_id]).values()))


def delete_matching(unit: Unit, owner_id: int, query: Query) -> int:
    """All jobs that match; how many these were. Raises InvalidRequest for a query that matches any job."""
    _refuse_paging(query)
    _require_filter(query, "delete")
    dialect.order_families(unit.connection, owner_id)
    jobs = store.lock_selected(unit.connection, listing.matching(owner_id, query))
    _delete(unit, jobs)
    return len(jobs)


def _delete(unit: Unit, jobs: Sequence[JobRow]) -> None:
    """A launcher that holds one of them is refused at its next report."""
    moves = Moves(unit)
    moves.delete(jobs)
    moves.flush()
    store.delete_jobs(unit.connection, [job.id for job in jobs])


def _require_filter(query: Query, what: str) -> None:
    if not filters.given(query):
        raise InvalidRequest(f"say which jobs to {what}: at least one filter")


def _refuse_paging(query: Query) -> None:
    if paging := sorted(query.model_fields_set & filters.PAGING):
        raise InvalidRequest(f"{', '.join(paging)}: this request is about all jobs that match")
