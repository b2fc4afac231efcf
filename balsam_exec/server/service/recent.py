"""The end of the feed in memory: who follows it is told there, since to read back what was just written takes half as
long as to write it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import takewhile
from typing import Any, NamedTuple

from balsam_exec.model.events import Kind
from balsam_exec.model.queries import FeedQuery
from balsam_exec.server.service.feed import Told, ends
from balsam_exec.server.service.unit import Unit
from balsam_exec.server.store.filters import tag_pairs
from balsam_exec.server.store.jobs import RESULT_COLUMNS
from balsam_exec.server.store.log import EventRow
from balsam_exec.server.store.types import decode, moment

#: Transactions that are kept, and what each may have: events, and bytes of them and of results.
_TRANSACTIONS = 20
_EVENTS = 1000
_BYTES = 256 * 1024
#: Jobs whose tags are kept, and how many of each.
_JOBS = 10_000
_TAGS = 10


class _Written(NamedTuple):
    """What a transaction wrote."""

    first: int  #: the id of its first event; the others follow
    events: list[EventRow]
    results: Mapping[int, tuple[Any, ...]]

    @property
    def last(self) -> int:
        return self.first + len(self.events) - 1


class Recent:
    """What the event loop of a service has written itself and last, without a gap. Nothing is guessed: what it does not
    know is left to the database."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._written: deque[_Written] = deque(maxlen=_TRANSACTIONS)
        self._tags: dict[int, Mapping[str, str]] = {}

    def keep(self, unit: Unit) -> None:
        """What was committed just now in the event loop."""
        with self._lock:
            self._learn(unit)
            if unit.first_event is None:
                return
            is_too_much = len(unit.events) > _EVENTS or _size(unit) > _BYTES
            if is_too_much or (self._written and self._written[-1].last + 1 != unit.first_event):
                self._written.clear()
            if not is_too_much:
                self._written.append(_Written(unit.first_event, unit.events, unit.results))

    def lose(self, unit: Unit) -> None:
        """What was committed in another thread: somewhere there is a gap now."""
        with self._lock:
            self._learn(unit)
            self._written.clear()

    def _learn(self, unit: Unit) -> None:
        for job_id, tags in unit.tags.items():
            self._tags.pop(job_id, None)
            if tags is not None and len(tags) <= _TAGS:
                self._tags[job_id] = tags
        while len(self._tags) > _JOBS:
            del self._tags[next(iter(self._tags))]

    def told(self, owner_id: int, after: int, query: FeedQuery) -> Told | None:
        """What `feed.read_feed` would tell; None where only the database knows."""
        with self._lock:
            if not self._written or not self._written[0].first - 1 <= after <= self._written[-1].last:
                return None
            pairs = tag_pairs(query.tags)
            found: list[dict[str, Any]] = []
            for event_id, row, results in self._since(after):
                if row.owner_id != owner_id or not _asked_for(row, query):
                    continue
                if pairs and row.kind == Kind.JOB:
                    tags = self._tags.get(row.subject_id)
                    if tags is None:
                        return None
                    if any(tags.get(key) != value for key, value in pairs):
                        continue
                event = _event(event_id, row)
                if query.include_results and ends(event):
                    result = results.get(row.subject_id)
                    if result is None:
                        return None
                    event["result"] = dict(zip(RESULT_COLUMNS[1:], result[1:], strict=True))
                found.append(event)
                if len(found) > query.limit:
                    return None
            return Told(self._written[-1].last, found, True)

    def _since(self, after: int) -> Iterator[tuple[int, EventRow, Mapping[int, tuple[Any, ...]]]]:
        """Events, with their ids and the results of their transactions."""
        new = list(takewhile(lambda written: written.last > after, reversed(self._written)))
        for written in reversed(new):
            for event_id, row in enumerate(written.events, written.first):
                if event_id > after:
                    yield event_id, row, written.results


def _asked_for(row: EventRow, query: FeedQuery) -> bool:
    """But for the tags."""
    return (
        (not query.kind or row.kind in query.kind)
        and (not query.to_state or row.to_state in query.to_state)
        and (not query.site_id or row.site_id in query.site_id)
        and (not query.subject_id or row.subject_id in query.subject_id)
    )


def _event(event_id: int, row: EventRow) -> dict[str, Any]:
    event = {"id": event_id, **row._asdict(), "timestamp": moment(row.timestamp), "data": decode(row.data)}
    del event["owner_id"]
    return event


def _size(unit: Unit) -> int:
    texts = (text for _, _, *some, _, _ in unit.results.values() for text in some)
    return sum(len(text or "") for text in texts) + sum(len(row.data or "") for row in unit.events)
