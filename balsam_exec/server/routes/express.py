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

_WITH_KEY: Mapping[tuple[str, str], Endpoint] = {("POST", "/jobs"): jobs.create_jobs}
_PLAIN: Mapping[tuple[str, str], Endpoint] = {("GET", "/events/feed"): events.read_feed}
_SESSION = re.compile(r"/sessions/([1-9][0-9]{0,17})/(acquire|report)")


def find(scope: Mapping[str, Any]) -> Callable[[Request], Awaitable[Response]] | None:
    """What serves a request, if it has a lane here."""
    if scope["type"] != "http":
        return None
    way = scope["method"], scope["path"]
    if way in _PLAIN:
        return _plain(_PLAIN[way])
    if way in _WITH_KEY:
        return _with_key(scope, _WITH_KEY[way])
    session = _SESSION.fullmatch(scope["path"]) if scope["method"] == "POST" else None
    if session is None:
        return None
    session_id = int(session[1])
    if session[2] == "acquire":
        return _with_key(scope, sessions.acquire, session_id)
    return _plain(sessions.report, session_id)


def _plain(endpoint: Endpoint, *ids: int) -> Callable[[Request], Awaitable[Response]]:
    async def serve(request: Request) -> Response:
        return await endpoint(request, *ids, user=await user_of(request))

    return serve


def _with_key(
    scope: Mapping[str, Any], endpoint: Endpoint, *ids: int
) -> Callable[[Request], Awaitable[Response]] | None:
    keys = [value for name, value in scope["headers"] if name == b"idempotency-key"]
    if len(keys) > 1 or not all(0 < len(key) <= MAX_KEY for key in keys):
        return None
    key = keys[0].decode("latin-1") if keys else None

    async def serve(request: Request) -> Response:
        return await endpoint(request, *ids, user=await user_of(request), key=key)

    return serve
