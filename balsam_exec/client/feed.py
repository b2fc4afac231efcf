"""Following the change feed: a stream of events that outlives restarts of the service and can be stopped at once."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from typing import Any

from balsam_exec.client.lookups import build
from balsam_exec.client.service import Service
from balsam_exec.model.errors import ServiceUnavailable
from balsam_exec.model.events import FeedEvent
from balsam_exec.model.queries import FeedQuery

#: Seconds one long poll waits. Only proxies that cut idle connections care.
POLL = 30.0


def follow(service: Service, query: FeedQuery | None = None, **lookups: Any) -> Follower:
    """Follow the feed from `query.cursor`, or else from now on: whatever happens after this has returned is told.

    The query is a FeedQuery or its fields as keywords. Raises what `Service.feed` raises.
    """
    return Follower(service, query or build(FeedQuery, lookups))


class Follower:
    """Iterate over it for the events, or over `batches()` for all that came together.

    One thread iterates; any thread may `stop()`. While the service is away it keeps trying from where it was.
    """

    def __init__(self, service: Service, query: FeedQuery) -> None:
        self._service = service.sibling()  # connections of its own, so that stop() cuts no one else's
        self._stopped = threading.Event()
        self._query = query.model_copy(update={"timeout": POLL})
        if query.cursor is None:
            start = self._service.feed(query.model_copy(update={"timeout": 0.0}))
            self._query = self._query.model_copy(update={"cursor": start.cursor})

    @property
    def cursor(self) -> str:
        """Where it is: the end of the last batch that was handed out. A FeedQuery with it continues from there."""
        assert self._query.cursor is not None
        return self._query.cursor

    def poll(self) -> list[FeedEvent]:
        """One long poll: the next events together, none if none came for a while or it was stopped."""
        try:
            feed = self._service.feed(self._query, deadline=math.inf)
        except ServiceUnavailable:
            if self._stopped.is_set():
                return []
            raise
        self._query = self._query.model_copy(update={"cursor": feed.cursor})
        return feed.events

    def batches(self) -> Iterator[list[FeedEvent]]:
        while not self._stopped.is_set():
            if events := self.poll():
                yield events

    def __iter__(self) -> Iterator[FeedEvent]:
        for batch in self.batches():
            yield from batch

    def stop(self) -> None:
        """End the iteration, also one that is waiting for events at this moment in another thread."""
        self._stopped.set()
        self._service.close()

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
