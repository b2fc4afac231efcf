"""Long polls: try, wait to be woken, try again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fastapi import Request

from balsam_exec.server.hub import Hub

T = TypeVar("T")


async def until_found(
    hub: Hub,
    topic: str,
    request: Request,
    timeout: float,
    attempt: Callable[[], Awaitable[T]],
    *,
    found: Callable[[T], bool],
    at_least_every: float = 60.0,
) -> T:
    """The first answer of `attempt` that has something, or its last one after `timeout` seconds.

    It is tried when the topic is published, and every `at_least_every` seconds; no more once the client is gone or the
    service is about to stop.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    with hub.subscribe(topic) as subscription:
        while True:
            answer = await attempt()
            remaining = deadline - loop.time()
            if found(answer) or remaining <= 0 or hub.closed:
                return answer
            await subscription.wait(min(remaining, at_least_every))
            if hub.closed or await request.is_disconnected():
                return answer
