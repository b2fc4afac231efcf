"""The express requests over one WebSocket, `/lane`: the same requests and answers, in frames.

A frame is a line and a body. The line of a request is `NUMBER METHOD TARGET [KEY]`, with the Idempotency-Key, that of
its answer `NUMBER STATUS`; the number is the client's. Requests of a lane run side by side, and are answered as they
are done. What has no answer when the connection ends may have been done or not, as with HTTP.

The feed and acquires may also be standing requests, with a `+` before the number: they are answered again and again,
as something comes up, until an answer has another status than 200.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from typing import Any

from fastapi import Request, Response
from starlette.types import Message, Receive, Scope, Send

from balsam_exec.model.errors import BalsamError, InvalidRequest
from balsam_exec.server.auth import user_of
from balsam_exec.server.routes import express
from balsam_exec.server.routes.http import MAX_KEY

PATH = "/lane"
#: Requests of a lane that are answered at the same time; more of them wait unread.
MOST = 64

#: The answer to a request that may fail.
Respond = Callable[[express.Serve, Request], Awaitable[Response]]

_PROTOCOL_ERROR = 1002
_HEAD = re.compile(rb"(\+?)([0-9]{1,18}) ([A-Z]{1,10}) (/[!-~]*)(?: ([!-~]{1,%d}))?" % MAX_KEY)


async def serve(scope: Scope, receive: Receive, send: Send, respond: Respond) -> None:
    """Serve the lane until its connection ends, if who asks for it may."""
    await receive()  # that it is asked for
    lane = _Lane(scope, send, respond)
    try:
        await user_of(lane.request({}, b""))
    except BalsamError:
        await send({"type": "websocket.close"})
        return
    await send({"type": "websocket.accept"})
    try:
        while (message := await receive())["type"] == "websocket.receive":
            await lane.take(message.get("bytes") or b"")
    finally:
        lane.close()


class _Lane:
    """One connection and the requests that are not answered yet."""

    def __init__(self, scope: Scope, send: Send, respond: Respond) -> None:
        self.closed = False
        self._app = scope["app"]
        self._credentials = [header for header in scope["headers"] if header[0] == b"authorization"]
        self._send = send
        self._respond = respond
        self._tasks: set[asyncio.Task[None]] = set()

    def request(self, asked: Mapping[str, Any], body: bytes) -> _FrameRequest:
        headers = [*self._credentials, *asked.get("headers", ())]
        return _FrameRequest({"type": "http", "app": self._app, **asked, "headers": headers}, body, self)

    async def take(self, frame: bytes) -> None:
        """Begin to answer the request of a frame."""
        if len(self._tasks) >= MOST:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        task = asyncio.create_task(self._answer(frame))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        self.closed = True
        for task in self._tasks:
            task.cancel()

    async def _answer(self, frame: bytes) -> None:
        line, _, body = frame.partition(b"\n")
        head = _HEAD.fullmatch(line)
        if head is None:
            await self._say({"type": "websocket.close", "code": _PROTOCOL_ERROR})
            self.close()
            return
        standing, number, method, target, key = head.groups()
        path, _, query = target.partition(b"?")
        asked = {
            "method": method.decode(),
            "path": path.decode(),
            "query_string": query,
            "headers": [(b"idempotency-key", key)] if key else [],
        }
        request = self.request(asked, body)
        if not standing:
            response = await self._respond(express.find(request.scope) or _no_such, request)
            await asyncio.sleep(0)  # whom it woke comes first: they wait for it
            await self._say_answer(number, response)
            return
        async with aclosing((express.find_standing(request.scope) or _none_stands)(request)) as answers:
            while True:
                response = await self._respond(lambda _: anext(answers), request)
                await self._say_answer(number, response)
                if response.status_code != 200:
                    return

    async def _say_answer(self, number: bytes, response: Response) -> None:
        answer = b"%b %d\n%b" % (number, response.status_code, bytes(response.body))
        await self._say({"type": "websocket.send", "bytes": answer})

    async def _say(self, message: Message) -> None:
        with suppress(OSError):  # the other end is gone, which `serve` hears of, too
            if not self.closed:
                await self._send(message)


class _FrameRequest(Request):
    """A request that came in a frame."""

    def __init__(self, scope: Scope, body: bytes, lane: _Lane) -> None:
        super().__init__(scope, self._body_once)
        self._whole = body
        self._lane = lane

    async def is_disconnected(self) -> bool:
        return self._lane.closed

    async def _body_once(self) -> Message:
        return {"type": "http.request", "body": self._whole}


async def _no_such(request: Request) -> Response:
    raise InvalidRequest(f"{request.method} {request.scope['path']} is not for the lane: send it over HTTP")


async def _none_stands(request: Request) -> AsyncGenerator[Response]:
    yield await _no_such(request)
