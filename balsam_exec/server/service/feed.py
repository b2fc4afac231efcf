"""The change feed: events in the order of commits, from a cursor on; and results."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple, Self

from balsam_exec.model.base import MAX_ENTITY
from balsam_exec.model.errors import InvalidRequest
from balsam_exec.model.events import Kind
from balsam_exec.model.queries import FeedQuery, Query
from balsam_exec.model.states import TERMINAL, JobState
from balsam_exec.server.store import events as event_store
from balsam_exec.server.store import feed as store
from balsam_exec.server.store import filters
from balsam_exec.server.store.database import Connection

#: Bytes of results in one answer.
BUDGET = 32 * 1024 * 1024


_CURSOR = re.compile(r"(\d{1,18})(?:-([0-9a-f]{8})-(\d{1,18}))?", re.ASCII)


class Cursor(NamedTuple):
    """A place in the feed: after the event of this id. Where it came with all there was at a generation of a hub, it
    says so, and whoever comes back to that hub need not look into the database before something is published."""

    event_id: int
    hub: str = ""
    generation: int = -1

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises InvalidRequest unless it is one that the feed gave out."""
        match = _CURSOR.fullmatch(text)
        if match is None:
            raise InvalidRequest("cursor: this is not one that the feed gave out; ask without one to begin at its end")
        event_id, hub, generation = match.groups()
        return cls(int(event_id), hub, int(generation)) if hub else cls(int(event_id))

    def __str__(self) -> str:
        return f"{self.event_id}-{self.hub}-{self.generation}" if self.hub else str(self.event_id)


class Told(NamedTuple):
    """Events, the id to go on from, and whether these are all there are for now."""

    event_id: int
    events: list[dict[str, Any]]
    complete: bool


def read_feed(
    connection: Connection, owner_id: int, after: int | None, query: FeedQuery, largest: int = MAX_ENTITY
) -> Told:
    """The events after that id; without one none, only the present end of the feed. `largest` bounds results."""
    head = store.head(connection, owner_id)
    if after is None or after >= head:
        return Told(head if after is None else after, [], True)
    events = store.after(connection, owner_id, after, head, query)
    complete = len(events) < query.limit
    if query.include_results:
        events, all_of_them = _with_results(connection, events, largest)
        complete = complete and all_of_them
    return Told(head if complete else events[-1]["id"], events, complete)


def _with_results(
    connection: Connection, events: list[dict[str, Any]], largest: int
) -> tuple[list[dict[str, Any]], bool]:
    """The events with their results, as many as the budget allows but at least one; and whether these are all."""
    ending = {event["subject_id"] for event in events if ends(event)}
    if not ending:
        return events, True
    sizes = _sizes(connection, ending, largest)
    budget = BUDGET
    kept = events
    for index, event in enumerate(events):
        budget -= sizes.get(event["subject_id"], 0) if ends(event) else 0
        if budget < 0 and index:
            kept = events[:index]
            break
    results = store.results(connection, [event["subject_id"] for event in kept if ends(event)])
    for event in kept:
        if ends(event):
            event["result"] = results.get(event["subject_id"]) or _plain(event["to_state"], None)
    return kept, len(kept) == len(events)


def _sizes(connection: Connection, ids: Collection[int], largest: int) -> dict[int, int]:
    """How large the results of the jobs are; nothing where they cannot be too large together."""
    return store.result_sizes(connection, ids) if len(ids) * 2 * largest > BUDGET else {}


def ends(event: Mapping[str, Any]) -> bool:
    """Whether a result comes with it."""
    return event["kind"] == Kind.JOB and event["to_state"] in TERMINAL


def _plain(state: str, return_code: int | None) -> dict[str, Any]:
    """How a job ended that left no result: cancelled, failed by a hook, or a success that has nothing to say."""
    ok = state == JobState.JOB_FINISHED
    return {"ok": ok, "error": "" if ok else f"the job ended as {state}", "return_code": return_code}


def results(
    connection: Connection, owner_id: int, ids: Iterable[int], largest: int = MAX_ENTITY
) -> dict[int, dict[str, Any]]:
    """How those of the jobs that have ended did, up to the budget: who misses one asks again."""
    ended = store.ended(connection, owner_id, sorted(set(ids)))
    sizes = _sizes(connection, ended, largest)
    budget = BUDGET
    chosen: list[int] = []
    for job_id in ended:
        budget -= sizes.get(job_id, 0)
        if budget < 0 and chosen:
            break
        chosen.append(job_id)
    found = store.results(connection, chosen)
    return {job_id: found.get(job_id) or _plain(*ended[job_id]) for job_id in chosen}


def log(connection: Connection, owner_id: int, query: Query) -> dict[str, Any]:
    """A page of the log."""
    return filters.page(event_store.listing(connection, owner_id, query), query)
