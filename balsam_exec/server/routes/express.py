"""A lane of its own for the few requests that every job passes through.

FastAPI's middleware, routing and dependencies take longer than it takes to record what happened to a job. So these
requests go straight to their functions, the same that FastAPI serves; a request that is not plainly one of them goes
the usual way, and is served or refused there.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

from fastapi import Request, Response

from balsam_exec.server.auth import user_of
from balsam_exec.server.routes import events, jobs, sessions
from balsam_exec.server.routes.http import MAX_KEY

Endpoint = Callable[..., Awaitable[Response]]
#: What serves a request.
Serve = Callable[[Request], Awaitable[Response]]
#: What serves a standing request: answers of status 200, and one of another at its end.
ServeOn = Callable[[Request], AsyncGenerator[Response]]

_SESSION = re.compile(r"/sessions/([1-9][0-9]{0,17})/(acquire|report)")


def find(scope: Mapping[str, Any]) -> Serve | None:
    """What serves a request, if it has a lane here."""
    if scope["type"] != "http":
        return None
    match scope["method"], scope["path"]:
        case "POST", "/jobs":
            return _with_key(scope, jobs.create_jobs)
        case "GET", "/events/feed":
            return _plain(events.read_feed)
        case "POST", path if session := _SESSION.fullmatch(path):
            if session[2] == "acquire":
                return _with_key(scope, sessions.acquire, int(session[1]))
            return _plain(sessions.report, int(session[1]))
    return None


def find_standing(scope: Mapping[str, Any]) -> ServeOn | None:
    """What serves a standing request, if it can be one."""
    match scope["method"], scope["path"]:
        case "GET", "/events/feed":
            return _standing(events.follow_feed)
        case "POST", path if (session := _SESSION.fullmatch(path)) and session[2] == "acquire":
            return _standing(sessions.keep_acquiring, int(session[1]), key=_key_of(scope))
    return None


def _standing(endpoint: Callable[..., AsyncGenerator[Response]], *ids: int, **key: str | None) -> ServeOn:
    async def serve(request: Request) -> AsyncGenerator[Response]:
        async with aclosing(endpoint(request, *ids, user=await user_of(request), **key)) as responses:
            async for response in responses:
                await user_of(request)  # who may not ask any more hears nothing more
                yield response

    return serve


def _keys(scope: Mapping[str, Any]) -> list[bytes]:
    return [value for name, value in scope["headers"] if name == b"idempotency-key"]


def _key_of(scope: Mapping[str, Any]) -> str | None:
    keys = _keys(scope)
    return keys[0].decode("latin-1") if keys else None


def _plain(endpoint: Endpoint, *ids: int) -> Serve:
    async def serve(request: Request) -> Response:
        return await endpoint(request, *ids, user=await user_of(request))

    return serve


def _with_key(scope: Mapping[str, Any], endpoint: Endpoint, *ids: int) -> Serve | None:
    keys = _keys(scope)
    if len(keys) > 1 or not all(0 < len(key) <= MAX_KEY for key in keys):
        return None
    key = _key_of(scope)

    async def serve(request: Request) -> Response:
        return await endpoint(request, *ids, user=await user_of(request), key=key)

    return serve
