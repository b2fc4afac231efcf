"""Long polls: try, wait to be woken, try again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from fastapi import Request

from balsam_exec.server.hub import Hub

T = TypeVar("T")


async def until_found(
    hub: Hub,
    timeout: float,
    attempt: Callable[[], Awaitable[T]],
    *,
    found: Callable[[T], bool],
    topics: Callable[[T], Iterable[str]],
    at_least_every: Callable[[T], float] = lambda _: 60.0,
    request: Request | None = None,
    known: T | None = None,
) -> T:
    """The first answer of `attempt` that has something, or its last one after `timeout` seconds.

    What is `known` stands for the answer of a first attempt: nothing was found, and nothing published since.
    It is tried again when one of the topics is published, and every `at_least_every` seconds; no more once the service
    is about to stop or, where it matters (with a `request`), the client is gone.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    generation = hub.generation
    answer = await attempt() if known is None else known
    with hub.subscribe(topics(answer)) as subscription:
        if not hub.quiet_since(generation, topics(answer)):
            subscription.set()
        while not found(answer) and not hub.closed and (remaining := deadline - loop.time()) > 0:
            await subscription.wait(min(remaining, at_least_every(answer)))
            if hub.closed or (request is not None and await request.is_disconnected()):
                break
            answer = await attempt()
    return answer
