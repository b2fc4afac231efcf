"""How waiting works: one follower of the change feed for each client, shared by all who wait; nobody asks on a timer.

No end is missed: a watch is on before its caller looks at the present state, and the feed is followed from before that.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import NamedTuple

from balsam_exec.client.feed import Follower, follow
from balsam_exec.client.service import Service
from balsam_exec.model.events import Kind
from balsam_exec.model.states import BATCH_JOB_ENDED, TERMINAL

#: What an event's `to_state` is when its subject was deleted.
DELETED = "deleted"
_ENDS = [*sorted(TERMINAL), *sorted(BATCH_JOB_ENDED), DELETED]


class Ended(NamedTuple):
    kind: Kind
    id: int
    state: str


class Watch:
    """The ends of some jobs or allocations, as they come."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[Ended | BaseException] = SimpleQueue()

    def next(self, timeout: float | None) -> list[Ended]:
        """All that have come, at least one. Raises TimeoutError, or what ended the feed."""
        try:
            found = [self._told(self.queue.get(timeout=None if timeout is None else max(timeout, 0)))]
        except Empty:
            raise TimeoutError from None
        while not self.queue.empty():
            found.append(self._told(self.queue.get()))
        return found

    @staticmethod
    def _told(item: Ended | BaseException) -> Ended:
        if isinstance(item, BaseException):
            raise item
        return item


class Completions:
    """Who waits for what. A thread follows the feed while anybody waits, and ends by itself afterwards."""

    def __init__(self, service: Service) -> None:
        self.pid = os.getpid()  # the thread does not survive a fork
        self._service = service
        self._lock = threading.Lock()
        self._watches: dict[tuple[Kind, int], set[Watch]] = {}
        self._following = False

    @contextmanager
    def watch(self, kind: Kind, ids: Iterable[int]) -> Iterator[Watch]:
        """From here on the ends of these come to the watch. Look at their present state after this, then wait."""
        watch = Watch()
        keys = [(kind, one) for one in ids]
        with self._lock:
            if not self._following:
                self._start()
            for key in keys:
                self._watches.setdefault(key, set()).add(watch)
        try:
            yield watch
        finally:
            with self._lock:
                for key in keys:
                    others = self._watches.get(key, set())
                    others.discard(watch)
                    if not others:
                        self._watches.pop(key, None)

    def _start(self) -> None:
        follower = follow(self._service, kind=[Kind.JOB, Kind.BATCH_JOB], to_state=_ENDS)
        self._following = True
        threading.Thread(target=self._follow, args=(follower,), name="balsam-completions", daemon=True).start()

    def _follow(self, follower: Follower) -> None:
        try:
            with follower:
                while self._wanted():
                    for event in follower.poll():
                        ended = Ended(event.kind, event.subject_id, event.to_state)
                        self._tell(self._watching(ended), ended)
        except Exception as error:  # noqa: BLE001 refused, not merely away: whoever waits has to know
            with self._lock:
                self._following = False
                everyone = set().union(*self._watches.values())
            self._tell(everyone, error)

    def _wanted(self) -> bool:
        with self._lock:
            self._following = bool(self._watches)
            return self._following

    def _watching(self, ended: Ended) -> set[Watch]:
        with self._lock:
            return set(self._watches.get((ended.kind, ended.id), ()))

    @staticmethod
    def _tell(watches: set[Watch], item: Ended | BaseException) -> None:
        for watch in watches:
            watch.queue.put(item)
