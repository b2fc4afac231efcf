"""The timer in the service: ends sessions that were not heard of, and forgets what is old."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from balsam_exec.server.auth import Authenticator
from balsam_exec.server.config import ServerSettings
from balsam_exec.server.service import leases
from balsam_exec.server.service.runtime import Runtime
from balsam_exec.server.service.unit import Unit
from balsam_exec.server.store import files, keys, users
from balsam_exec.server.store import leases as lease_store
from balsam_exec.server.store.database import Connection

log = logging.getLogger(__name__)

_SECOND = 1_000_000
_HOUR = 3600 * _SECOND


class Reaper:
    """Any number of processes may run one: each session is looked at again under its lock."""

    def __init__(self, runtime: Runtime, authenticator: Authenticator, settings: ServerSettings) -> None:
        self._runtime = runtime
        self._authenticator = authenticator
        self._period = settings.reaper_period
        self._key_lifetime = settings.key_lifetime * _SECOND
        self._keys_forgotten = 0
        self._next_expiry: int | None = None

    async def run(self) -> None:
        while True:
            for duty in (self._expire_sessions, self._mark_tokens, self._forget_keys):
                await self._survive(duty)
            await asyncio.sleep(self._until_next())

    async def _survive(self, duty: Callable[[], Awaitable[None]]) -> None:
        """Whatever goes wrong now, the next round comes: without a reaper no lease would ever end."""
        try:
            await duty()
        except Exception:
            log.exception("the reaper will try again in %s s", self._period)

    def _until_next(self) -> float:
        """Seconds until a session expires, at most a period."""
        if self._next_expiry is None:
            return self._period
        return min(self._period, max(0.01, (self._next_expiry - self._runtime.clock()) / _SECOND))

    async def _expire_sessions(self) -> None:
        now = self._runtime.clock()
        self._next_expiry = None
        for session_id in await self._runtime.read(_expired, now):
            await self._runtime.write(leases.expire_session, session_id)
            log.warning("session %d expired", session_id)
        self._next_expiry = await self._runtime.read(lease_store.next_expiry)

    async def _mark_tokens(self) -> None:
        if used := self._authenticator.take_used():
            await self._runtime.write(_mark_used, used)

    async def _forget_keys(self) -> None:
        now = self._runtime.clock()
        if now - self._keys_forgotten >= _HOUR:
            self._keys_forgotten = now
            await self._runtime.write(_forget, now - self._key_lifetime)


def _expired(connection: Connection, now: int) -> list[int]:
    return lease_store.expired(connection, now)


def _mark_used(unit: Unit, used: dict[int, int]) -> None:
    users.mark_used(unit.connection, used)


def _forget(unit: Unit, before: int) -> None:
    keys.forget(unit.connection, before)
    files.forget(unit.connection, unit.now)  # of processes that died while they waited
