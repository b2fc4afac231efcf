"""Work that is made is given to who waits for it in the same transaction: another one would cost as much again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from balsam_exec.model.errors import NotFound
from balsam_exec.server.service.leases import Lease
from balsam_exec.server.service.unit import Unit

#: Leases what there is, in whoever's transaction. Raises NotFound when the session is over.
Take = Callable[[Unit], Lease]


class Given(NamedTuple):
    lease: Lease
    generation: int  #: of the hub, up to which the lease knows what there is


class Place:
    """In the queue for the work of a topic; what is given to it waits here."""

    def __init__(self, queues: dict[str, dict[Place, None]], take: Take) -> None:
        self.take = take
        self.given: Given | None = None
        self._queues = queues
        self._topic = ""

    def wait_for(self, topic: str) -> None:
        self._topic = topic
        self._queues[topic][self] = None

    def leave(self) -> None:
        if queue := self._queues.get(self._topic):
            queue.pop(self, None)
            if not queue:
                del self._queues[self._topic]

    def fetch(self) -> Given | None:
        given, self.given = self.given, None
        return given


class Handover:
    """The queues of one server process, for its event loop alone: what is made elsewhere is found by who is woken."""

    def __init__(self) -> None:
        self._queues: defaultdict[str, dict[Place, None]] = defaultdict(dict)

    def place(self, take: Take) -> Place:
        return Place(self._queues, take)

    def lease(self, unit: Unit) -> list[tuple[Place, Lease]]:
        """Lease the work that the unit makes to the first of each queue, who gets it after the commit."""
        found = []
        for topic in unit.topics & self._queues.keys():
            place = next((place for place in self._queues[topic] if place.given is None), None)
            if place is not None:
                with suppress(NotFound):  # which it will hear itself
                    found.append((place, place.take(unit)))
        return [(place, lease) for place, lease in found if lease.jobs]
