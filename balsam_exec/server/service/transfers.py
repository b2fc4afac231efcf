"""Transfers, and the jobs that go on when theirs are done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from balsam_exec.model.errors import IllegalTransition, InvalidRequest, NotFound
from balsam_exec.model.queries import Query
from balsam_exec.model.states import Actor, JobState, check
from balsam_exec.model.transfers import TransferBulkPatch, TransferPatch, TransferState
from balsam_exec.server.service.moves import Moves
from balsam_exec.server.service.unit import Unit
from balsam_exec.server.store import filters
from balsam_exec.server.store import jobs as job_store
from balsam_exec.server.store import transfers as store
from balsam_exec.server.store.database import Connection

_S = TransferState
#: What a site may make of a transfer that its job lets it work on; what has failed may be tried again.
_NEXT = {
    _S.PENDING: {_S.ACTIVE, _S.DONE, _S.FAILED},
    _S.ACTIVE: {_S.PENDING, _S.DONE, _S.FAILED},
    _S.FAILED: {_S.PENDING, _S.ACTIVE, _S.DONE},
}
#: Where a job waits for its transfers in one direction, and what it becomes when all of them are done.
_STAGES = {"in": (JobState.READY, JobState.STAGED_IN), "out": (JobState.POSTPROCESSED, JobState.STAGED_OUT)}


def _record(row: Any) -> dict[str, Any]:
    return {key: value for key, value in row._mapping.items() if key != "owner_id"}


def transfer(connection: Connection, owner_id: int, transfer_id: int) -> dict[str, Any]:
    rows = store.some(connection, owner_id, [transfer_id])
    if not rows:
        raise NotFound(f"there is no transfer {transfer_id}")
    return _record(rows[0])


def transfers(connection: Connection, owner_id: int, query: Query) -> dict[str, Any]:
    return filters.page([_record(row) for row in store.listing(connection, owner_id, query)], query)


def patch_transfer(unit: Unit, owner_id: int, transfer_id: int, patch: TransferPatch) -> dict[str, Any]:
    _patch(unit, owner_id, {transfer_id: patch})
    return transfer(unit.connection, owner_id, transfer_id)


def patch_transfers(unit: Unit, owner_id: int, patches: Sequence[TransferBulkPatch]) -> int:
    """All of them, or none."""
    by_id = {patch.id: patch for patch in patches}
    if len(by_id) < len(patches):
        raise InvalidRequest("a transfer is named twice: send one patch for each")
    _patch(unit, owner_id, by_id)
    return len(by_id)


def _patch(unit: Unit, owner_id: int, patches: Mapping[int, TransferPatch]) -> None:
    """Raises NotFound, IllegalTransition."""
    ids = sorted(patches)
    rows = store.some(unit.connection, owner_id, ids)
    if absent := sorted(set(ids) - {row.id for row in rows}):
        raise NotFound(f"there is no transfer {', '.join(map(str, absent[:10]))}", transfer_ids=absent[:100])
    jobs = job_store.lock(unit.connection, owner_id, {row.job_id for row in rows})
    for row in store.some(unit.connection, owner_id, ids):  # again: nobody changes them now that their jobs are locked
        values = patches[row.id].model_dump(exclude_none=True, exclude={"id"})
        target = values.get("state")
        if target is not None and target != row.state and target not in _NEXT.get(TransferState(row.state), ()):
            legal = ", ".join(sorted(_NEXT.get(TransferState(row.state), ()))) or "nothing"
            raise IllegalTransition(
                f"transfer {row.id} cannot go from {row.state} to {target}; from here: {legal}", transfer_id=row.id
            )
        if values:
            store.update_transfer(unit.connection, row.id, values)
    waiting = store.unfinished(unit.connection, sorted(jobs))
    moves = Moves(unit)
    for job in jobs.values():
        for direction, (source, target_state) in _STAGES.items():
            if job.state is source and (job.id, direction) not in waiting:
                check(source, target_state, Actor.SITE)
                moves.hop(job, target_state)
    moves.flush()
