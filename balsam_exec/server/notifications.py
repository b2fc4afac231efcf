"""Between several server processes on one PostgreSQL: what one of them changed wakes those who wait at the others."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from balsam_exec.server.auth import Authenticator
from balsam_exec.server.service.runtime import Runtime
from balsam_exec.server.store.dialect import CHANNEL, listening_address

if TYPE_CHECKING:
    from psycopg import AsyncConnection

log = logging.getLogger(__name__)

_RETRY_AFTER = 1.0  # seconds


async def listen(runtime: Runtime, authenticator: Authenticator) -> None:
    """Pass on notifications for ever. While they do not arrive, tokens are looked up at every request."""
    import psycopg

    address = listening_address(runtime.database.engine)
    while True:
        authenticator.remembering = False
        try:
            async with await psycopg.AsyncConnection.connect(address, autocommit=True) as connection:
                await connection.execute(f"LISTEN {CHANNEL}")
                authenticator.remembering = True
                runtime.hub.publish_all()  # what was published before we listened
                await _pass_on(connection, runtime)
        except psycopg.Error as error:
            log.warning("not hearing from the other server processes: %s", error)
        await asyncio.sleep(_RETRY_AFTER)


async def _pass_on(connection: AsyncConnection[object], runtime: Runtime) -> None:
    async for notification in connection.notifies():
        sender, *topics = notification.payload.split()
        if sender == runtime.sender:
            continue
        if topics == ["*"]:
            runtime.hub.publish_all()
        else:
            runtime.hub.publish(topics)
