"""Giving jobs other parents, or other terms with them."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Sequence

from balsam_exec.model.errors import Conflict, InvalidRequest
from balsam_exec.model.jobs import JobPatch
from balsam_exec.model.states import TERMINAL, WAITING, Step
from balsam_exec.server.service.create import parent_states
from balsam_exec.server.service.moves import Moves
from balsam_exec.server.service.unit import Unit
from balsam_exec.server.store import edges as store
from balsam_exec.server.store import jobs as job_store
from balsam_exec.server.store.jobs import JobRow


def concerned(patch: JobPatch) -> bool:
    """Whether this changes what a job has to do with its parents, so that it may have to move."""
    return patch.parent_ids is not None or patch.on_parent_failure is not None


def change_terms(unit: Unit, moves: Moves, jobs: Sequence[JobRow], patch: JobPatch) -> None:
    """Of some jobs of one owner, held by no launcher, whose other fields are stored. `moves.reconsider` is for later,
    when their states are changed too, and so is `refuse_circles`.

    Raises NotFound (a parent), Conflict for jobs between their run and their end.
    """
    if patch.on_parent_failure is not None:
        for job in jobs:
            job.on_parent_failure = patch.on_parent_failure
    if patch.parent_ids is not None:
        _replace_parents(unit, moves, jobs, set(patch.parent_ids))
    if patch.parent_ids is not None or patch.input_files is not None:
        _rethink_steps(unit, jobs)


def _replace_parents(unit: Unit, moves: Moves, jobs: Sequence[JobRow], parent_ids: set[int]) -> None:
    if late := [job for job in jobs if job.state not in WAITING | TERMINAL]:
        raise Conflict(
            f"job {late[0].id} is {late[0].state}: parent_ids can change until a job starts, and when it has ended",
            job_ids=[job.id for job in late[:100]],
        )
    ids, owner_id = [job.id for job in jobs], jobs[0].owner_id
    former = {parent for parent, _ in store.parents(unit.connection, ids)}
    states = parent_states(unit, owner_id, parent_ids | former)
    store.replace(unit.connection, ids, sorted(parent_ids))
    for job in jobs:
        moves.adopt(job, [states[parent] for parent in parent_ids])


def refuse_circles(unit: Unit, ids: Collection[int]) -> None:
    """Raises InvalidRequest if one of these jobs, which have other parents now, waits for itself."""
    if circle := find_circle(store.below(unit.connection, ids)):
        shown = " -> ".join(map(str, circle if len(circle) <= 10 else [*circle[:9], "...", circle[-1]]))
        raise InvalidRequest(f"jobs would wait for each other in a circle: {shown}", job_ids=circle)


def _rethink_steps(unit: Unit, jobs: Sequence[JobRow]) -> None:
    """Whether they have files to get from their parents."""
    asking = store.with_input(unit.connection, [job.id for job in jobs])
    groups: defaultdict[Step, list[int]] = defaultdict(list)
    for job in jobs:
        steps = job.steps | Step.INPUT_FILES if job.id in asking else job.steps & ~Step.INPUT_FILES
        if steps != job.steps:
            job.steps = steps
            groups[steps].append(job.id)
    for steps, ids in groups.items():
        job_store.update_fields(unit.connection, ids, {"steps": int(steps)}, {}, unit.now)


def find_circle(edges: Iterable[tuple[int, int]]) -> list[int]:
    """Jobs each of which is a parent of the next one, the last one the same as the first; [] if there are none."""
    parents: defaultdict[int, set[int]] = defaultdict(set)
    children: defaultdict[int, list[int]] = defaultdict(list)
    for parent, child in edges:
        parents[child].add(parent)
        children[parent].append(child)
    free = deque(children.keys() - parents.keys())
    while free:
        parent = free.popleft()
        for child in children[parent]:
            parents[child].discard(parent)
            if not parents[child]:
                del parents[child]
                free.append(child)
    return _round_trip(parents)


def _round_trip(parents: dict[int, set[int]]) -> list[int]:
    """Of jobs that all have parents among them: back from parent to parent until one comes again."""
    if not parents:
        return []
    job, path = min(parents), dict[int, None]()
    while job not in path:
        path[job] = None
        job = min(parents[job])
    seen = list(path)
    return [job, *reversed(seen[seen.index(job) :])]
