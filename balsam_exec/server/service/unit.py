"""One use case, one transaction: what it changed, and who is to be woken when it is committed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from balsam_exec.model.events import Kind
from balsam_exec.server.store import log
from balsam_exec.server.store.database import Connection
from balsam_exec.server.store.types import encode, moment

#: A topic that whoever waits in the hub may name. All are strings, so that they travel between processes.
TOKENS = "tokens"


def feed_topics(owner_id: int, kinds: Iterable[str], to_states: Iterable[str]) -> list[str]:
    """The topics of an owner's events of these kinds; with `to_states`, only of those that go to one of them."""
    states = list(to_states)
    return [
        f"feed:{owner_id}:{kind}:{state}" if state else f"feed:{owner_id}:{kind}"
        for kind in kinds
        for state in states or [""]
    ]


def work_at(site_id: int) -> str:
    return f"work:{site_id}"


def orders_for(session_id: int) -> str:
    return f"orders:{session_id}"


class Unit:
    """Collects events, counts and topics; `flush` writes them as the last thing of the transaction."""

    def __init__(self, connection: Connection, now: int) -> None:
        self.connection = connection
        self.now = now  #: microseconds since 1970
        self.topics: set[str] = set()
        self._events: list[tuple[Any, ...]] = []
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
    ) -> None:
        """An event, for the log and the feed."""
        self._events.append(
            (owner_id, kind.value, subject_id, site_id, str(source), str(target), at or self.now, encode(data))
        )

    def count(self, owner_id: int, site_id: int, state: str, change: int) -> None:
        """The owner has that many more jobs in the state at the site."""
        self._counts[owner_id, site_id, str(state)] += change

    def flush(self) -> None:
        if self._events:
            log.insert_events(self.connection, self._events)
            for owner_id, kind, to_state in {(event[0], event[1], event[5]) for event in self._events}:
                self.topics.update(feed_topics(owner_id, [kind], ["", to_state]))
        log.change_counts(self.connection, self._counts)
