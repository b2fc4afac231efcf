"""SQL of transfers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, select, update

from balsam_exec.model.queries import Query
from balsam_exec.model.transfers import TransferState
from balsam_exec.server.store import filters
from balsam_exec.server.store.dialect import any_of
from balsam_exec.server.store.schema import transfers
from balsam_exec.server.store.types import AnyRow, IdList

_FIELDS = {column.name: column for column in transfers.c}
_IDS = bindparam("ids", type_=IdList())


def some(connection: Connection, owner_id: int, ids: Sequence[int]) -> list[AnyRow]:
    query = select(transfers).where(any_of(transfers.c.id, _IDS), transfers.c.owner_id == owner_id)
    return list(connection.execute(query.order_by(transfers.c.id), {"ids": ids}))


def listing(connection: Connection, owner_id: int, query: Query) -> list[AnyRow]:
    statement = select(transfers).where(transfers.c.owner_id == owner_id)
    statement = statement.where(*filters.conditions(filters.given(query), _FIELDS))
    return list(connection.execute(filters.paged(statement, query, _FIELDS, transfers.c.id)))


def update_transfer(connection: Connection, transfer_id: int, values: dict[str, Any]) -> None:
    connection.execute(update(transfers).where(transfers.c.id == transfer_id).values(values))


def unfinished(connection: Connection, job_ids: Sequence[int]) -> set[tuple[int, str]]:
    """The (job, direction) of these jobs in which a transfer is yet to be done."""
    query = select(transfers.c.job_id, transfers.c.direction).where(
        any_of(transfers.c.job_id, _IDS), transfers.c.state != TransferState.DONE.value
    )
    return set(connection.execute(query, {"ids": job_ids}))
