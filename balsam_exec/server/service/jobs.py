"""Reading jobs."""

from __future__ import annotations

from typing import Any

from balsam_exec.model.errors import NotFound, TooLarge
from balsam_exec.model.queries import Query
from balsam_exec.server.store import filters, listing
from balsam_exec.server.store.database import Connection

#: Bytes of arguments in one page.
BUDGET = 32 * 1024 * 1024


def job(connection: Connection, owner_id: int, job_id: int) -> dict[str, Any]:
    found = listing.job(connection, owner_id, job_id)
    if found is None:
        raise NotFound(f"there is no job {job_id}")
    return found


def jobs(connection: Connection, owner_id: int, query: Query) -> dict[str, Any]:
    """A page, as much of it as the budget allows. Raises TooLarge where an order leaves no way to go on from there."""
    page = _within_budget(filters.page(listing.job_page(connection, owner_id, query), query), query)
    listing.add_arguments(connection, page["results"])
    return page


def _within_budget(page: dict[str, Any], query: Query) -> dict[str, Any]:
    results = page["results"]
    budget = BUDGET
    for index, found in enumerate(results):
        budget -= found["size"]
        if budget < 0 and index:
            if query.ordering not in ("id", "-id"):  # type: ignore[attr-defined]
                raise TooLarge(f"the arguments of these jobs exceed {BUDGET} bytes: ask for fewer (limit={index})")
            return {"results": results[:index], "next": results[index - 1]["id"]}
    return page


def count(connection: Connection, owner_id: int, query: Query) -> int:
    lookups = filters.given(query)
    if set(lookups) <= {"site_id", "state"}:
        counts = listing.counted_states(connection, owner_id, lookups.get("site_id", []))
        wanted = lookups.get("state", counts)
        return sum(counts.get(state, 0) for state in set(wanted))
    return listing.count(connection, owner_id, query)


def states(connection: Connection, owner_id: int, query: Query) -> list[dict[str, Any]]:
    lookups = filters.given(query)
    if set(lookups) <= {"site_id"}:
        counts = listing.counted_states(connection, owner_id, lookups.get("site_id", []))
    else:
        counts = listing.state_counts(connection, owner_id, query)
    return [{"state": state, "count": number} for state, number in sorted(counts.items())]
