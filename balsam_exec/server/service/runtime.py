"""Runs use cases: in a thread, in a transaction, and wakes who waits for what they did."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from balsam_exec.model.base import MAX_ENTITY
from balsam_exec.server.hub import Hub
from balsam_exec.server.service.handover import Given, Handover, Place
from balsam_exec.server.service.leases import Lease
from balsam_exec.server.service.recent import Recent
from balsam_exec.server.service.unit import Unit
from balsam_exec.server.store.database import Connection, Database
from balsam_exec.server.store.dialect import notify

P = ParamSpec("P")
T = TypeVar("T")


def clock() -> int:
    """Now, in microseconds since 1970."""
    return time.time_ns() // 1000


class Runtime:
    """What the routes and the reaper work with: the database and the hub of one server process."""

    def __init__(
        self, database: Database, hub: Hub, clock: Callable[[], int] = clock, max_entity: int = MAX_ENTITY
    ) -> None:
        self.database = database
        self.hub = hub
        self.handover = Handover()
        self.recent = Recent()
        self.clock = clock
        self.max_entity = max_entity  #: the largest serialized entity, in bytes
        #: Names this process to the others, so that it does not wake itself twice.
        self.sender = uuid.uuid4().hex[:12]

    async def read(self, use_case: Callable[Concatenate[Connection, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.database.in_reader(lambda: self.read_now(use_case, *args, **kwargs))

    async def write(self, use_case: Callable[Concatenate[Unit, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.database.in_writer(lambda: self.write_now(use_case, *args, **kwargs))

    async def read_brief(
        self, use_case: Callable[Concatenate[Connection, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """`read` for what takes a millisecond or so."""
        return await self.database.in_reader(lambda: self.read_now(use_case, *args, **kwargs), brief=True)

    async def write_brief(self, use_case: Callable[Concatenate[Unit, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """`write` for what takes a millisecond or so."""
        return await self.database.in_writer(lambda: self.write_now(use_case, *args, **kwargs), brief=True)

    def read_now(self, use_case: Callable[Concatenate[Connection, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        with self.database.reading() as connection:
            return use_case(connection, *args, **kwargs)

    def write_now(self, use_case: Callable[Concatenate[Unit, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """The use case in a transaction of this thread. Who waits for its topics is woken after the commit."""

        def work(connection: Connection) -> tuple[T, Unit, list[tuple[Place, Lease]]]:
            unit = Unit(connection, self.clock(), self.max_entity)
            result = use_case(unit, *args, **kwargs)
            leases = self.handover.lease(unit) if self.database.is_inline else []
            unit.flush()
            if unit.topics:
                notify(connection, self.sender, unit.topics)
            return result, unit, leases

        result, unit, leases = self.database.transaction(work)
        if self.database.is_inline:
            self.recent.keep(unit)
        elif self.database.kind == "sqlite":
            self.recent.lose(unit)
        self.hub.publish(unit.topics)
        for place, lease in leases:
            place.given = Given(lease, self.hub.generation)
        return result
