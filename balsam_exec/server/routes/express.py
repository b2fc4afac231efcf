"""A lane of its own for the few requests that every job passes through.

FastAPI's middleware, routing and dependencies take longer than it takes to record what happened to a job. So these
requests go straight to their functions, the same that FastAPI serves; a request that is not plainly one of them goes
the usual way, and is served or refused there.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import Request, Response

from balsam_exec.server.auth import user_of
from balsam_exec.server.routes import events, jobs, sessions
from balsam_exec.server.routes.http import MAX_KEY

Endpoint = Callable[..., Awaitable[Response]]
#: What serves a request.
Serve = Callable[[Request], Awaitable[Response]]

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


def _plain(endpoint: Endpoint, *ids: int) -> Serve:
    async def serve(request: Request) -> Response:
        return await endpoint(request, *ids, user=await user_of(request))

    return serve


def _with_key(scope: Mapping[str, Any], endpoint: Endpoint, *ids: int) -> Serve | None:
    keys = [value for name, value in scope["headers"] if name == b"idempotency-key"]
    if len(keys) > 1 or not all(0 < len(key) <= MAX_KEY for key in keys):
        return None
    key = keys[0].decode("latin-1") if keys else None

    async def serve(request: Request) -> Response:
        return await endpoint(request, *ids, user=await user_of(request), key=key)

    return serve
