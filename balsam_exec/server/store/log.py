"""Events and counts: what every change of state writes besides itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, text

from balsam_exec.server.store import dialect
from balsam_exec.server.store.prepared import Prepared
from balsam_exec.server.store.schema import events


class EventRow(NamedTuple):
    """An event as its table has it, but for the id."""

    owner_id: int
    kind: str
    subject_id: int
    site_id: int
    from_state: str
    to_state: str
    timestamp: int  #: microseconds since 1970
    data: str | None  #: JSON


_ADD = Prepared(
    text(
        "INSERT INTO job_counts (site_id, state, owner_id, count) VALUES (:site_id, :state, :owner_id, :change) "
        "ON CONFLICT (site_id, state) DO UPDATE SET count = job_counts.count + excluded.count"
    )
)
_SUBTRACT = Prepared(text("UPDATE job_counts SET count = count + :change WHERE site_id = :site_id AND state = :state"))


def insert_events(connection: Connection, rows: Sequence[EventRow]) -> int | None:
    """The id of the first, where the others follow it."""
    for owner_id in sorted({row.owner_id for row in rows}):
        dialect.order_events(connection, owner_id)
    first = dialect.next_id(connection, events)
    dialect.bulk_insert(connection, events, EventRow._fields, rows)
    return first


def change_counts(connection: Connection, changes: Mapping[tuple[int, int, str], int]) -> None:
    """Add to the counts by (owner, site, state). After `insert_events`, whose lock keeps an owner's writers in line."""
    rows: list[dict[str, Any]] = [
        {"owner_id": owner_id, "site_id": site_id, "state": state, "change": change}
        for (owner_id, site_id, state), change in changes.items()
        if change
    ]
    for statement, some in (
        (_ADD, [row for row in rows if row["change"] > 0]),
        (_SUBTRACT, [row for row in rows if row["change"] < 0]),
    ):
        if some:
            statement.run(connection, *some)
