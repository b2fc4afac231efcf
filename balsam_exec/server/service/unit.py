"""One use case, one transaction: what it changed, and who is to be woken when it is committed."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import reduce
from operator import or_
from typing import Any

from balsam_exec.model.events import Kind
from balsam_exec.model.queries import FeedQuery
from balsam_exec.server.store import jobs as job_store
from balsam_exec.server.store import log
from balsam_exec.server.store.database import Connection
from balsam_exec.server.store.types import encode, moment

#: A topic that whoever waits in the hub may name. All are strings, so that they travel between processes.
TOKENS = "tokens"
#: How many marks there are for tags: as many as bits in a column, without the sign.
_MARKS = 62


def feed_topics(owner_id: int, kinds: Iterable[str], to_states: Iterable[str], mark: str = "") -> list[str]:
    """The topics of an owner's events of these kinds; with `to_states`, only of those that go to one of them, with a
    `mark`, only of jobs whose tags have it."""
    states = list(to_states)
    return [
        f"feed:{owner_id}:{kind}:{state}{mark}" if state else f"feed:{owner_id}:{kind}{mark}"
        for kind in kinds
        for state in states or [""]
    ]


def tag_marks(tags: Mapping[str, str]) -> int:
    """A bit for each of the tags, out of so few that it says of a tag "perhaps" or "no"."""
    marks = 0
    for key, value in tags.items():
        marks |= 1 << zlib.crc32(f"{key}:{value}".encode()) % _MARKS
    return marks


def topics_of(owner_id: int, query: FeedQuery) -> list[str]:
    """The topics for whoever waits for what this query asks of the feed."""
    kinds = set(query.kind or Kind)
    if not query.tags:
        return feed_topics(owner_id, kinds, query.to_state)
    topics = feed_topics(owner_id, kinds - {Kind.JOB}, query.to_state)  # what is no job passes whatever the tags
    if Kind.JOB in kinds:
        key, _, value = query.tags[0].partition(":")
        for mark in (tag_marks({key: value}).bit_length() - 1, "any"):
            topics += feed_topics(owner_id, [Kind.JOB], query.to_state, f"#{mark}")
    return topics


def work_at(site_id: int) -> str:
    return f"work:{site_id}"


def hooks_at(site_id: int) -> str:
    return f"hooks:{site_id}"


def orders_for(session_id: int) -> str:
    return f"orders:{session_id}"


def room_of(session_id: int) -> str:
    """Of which its launcher has more than the acquire that waits asks for."""
    return f"room:{session_id}"


class Unit:
    """Collects events, counts and topics; `flush` writes them as the last thing of the transaction."""

    def __init__(self, connection: Connection, now: int, max_entity: int) -> None:
        self.connection = connection
        self.now = now  #: microseconds since 1970
        self.max_entity = max_entity  #: the largest serialized entity, in bytes
        self.topics: set[str] = set()
        self.events: list[log.EventRow] = []
        self.first_event: int | None = None  #: the id of the first, where the others follow it
        self.results: dict[int, tuple[Any, ...]] = {}  #: the rows of jobs that ended
        #: What jobs have as tags from now on; None where they have none, as they are deleted.
        self.tags: dict[int, Mapping[str, str] | None] = {}
        self._told: dict[tuple[int, str, str], set[int | None]] = {}  #: the marks of (owner, kind, state)
        self._counts: Counter[tuple[int, int, str]] = Counter()

    @property
    def moment(self) -> datetime:
        return moment(self.now)

    def record(
        self,
        owner_id: int,
        kind: Kind,
        subject_id: int,
        site_id: int,
        source: str,
        target: str,
        *,
        at: int | None = None,
        data: Any = None,
        marks: int | None = None,
    ) -> None:
        """An event, for the log and the feed; of a job with the `tag_marks` of its tags, if they are known."""
        self._told.setdefault((owner_id, kind.value, str(target)), set()).add(marks)
        what = owner_id, kind.value, subject_id, site_id, str(source), str(target)
        self.events.append(log.EventRow(*what, at or self.now, encode(data)))

    def count(self, owner_id: int, site_id: int, state: str, change: int) -> None:
        """The owner has that many more jobs in the state at the site."""
        self._counts[owner_id, site_id, str(state)] += change

    def insert_results(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Rows of RESULT_COLUMNS."""
        if rows:
            job_store.insert_results(self.connection, rows)
            self.results.update((row[0], row) for row in rows)

    def flush(self) -> None:
        if self.events:
            self.first_event = log.insert_events(self.connection, self.events)
            for (owner_id, kind, to_state), marks in self._told.items():
                for mark in _suffixes(marks) if kind == Kind.JOB else [""]:
                    self.topics.update(feed_topics(owner_id, [kind], ["", to_state], mark))
        log.change_counts(self.connection, self._counts)


def _suffixes(marks: Iterable[int | None]) -> list[str]:
    """What topics end in for events of jobs with these marks: nothing, for who wants all; and each that somebody may
    want."""
    together = reduce(or_, (some for some in marks if some is not None), 0)
    found = ["", "#any"] if None in marks else [""]
    while together:
        found.append(f"#{together.bit_length() - 1}")
        together ^= 1 << (together.bit_length() - 1)
    return found
