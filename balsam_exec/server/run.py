"""A server process: from its options to a listening, migrated service and its orderly end."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from balsam_exec.server.admin import bootstrap
from balsam_exec.server.app import create_app
from balsam_exec.server.config import ServerSettings
from balsam_exec.server.migrations import migrate

#: Seconds that requests in flight get when the service ends; long polls answer at once.
_GRACE = 2
#: Bytes that are gathered at most.
_SHORT = 64 * 1024


def serve(
    settings: ServerSettings,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    fd: int | None = None,
    bootstrap_file: Path | None = None,
    until_eof: bool = False,
) -> None:
    """Serve until SIGTERM or SIGINT, or with `until_eof` until standard input ends.

    With `fd` it serves on that inherited, listening socket. `bootstrap_file` gets the URL and a valid token of the
    local user.
    """
    listener = socket.create_server((host, port), backlog=1024) if fd is None else socket.socket(fileno=fd)
    migrate(settings.database_url)
    if bootstrap_file is not None:
        bootstrap(settings.database_url, bootstrap_file, url_of(listener))
    server = _Server(
        uvicorn.Config(
            create_app(settings),
            loop="uvloop",
            http=_Protocol,
            ws="websockets-sansio",
            ws_max_size=settings.max_body,
            ws_per_message_deflate=False,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            log_level="warning",
            timeout_keep_alive=75,
            timeout_graceful_shutdown=_GRACE,
        )
    )
    if until_eof:
        _at_eof(server.stop)
    # What is loaded by now stays: the garbage collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    server.run(sockets=[listener])


class _Protocol(HttpToolsProtocol):
    """Sends the head and the body of an answer in one piece: each packet by itself would wake the client."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_Gathering(transport, self.loop))  # type: ignore[arg-type]


class _Gathering:
    """A transport that writes what comes in one turn of the event loop at its end, and at once what is large. It goes
    on to read where it is told so before the next turn, as after every message of a WebSocket: to stop and to start
    again costs as much as to read."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._waiting: list[bytes] = []
        self._gathers = True
        self._pausing = False
        self._paused = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._gathers = False
        self._transport.set_protocol(protocol)

    def write(self, data: bytes) -> None:
        if not self._gathers and not self._waiting:
            self._transport.write(data)
            return
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append(data)
        if len(data) > _SHORT:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def pause_reading(self) -> None:
        if not self._pausing:
            self._pausing = True
            self._loop.call_soon(self._pause)

    def resume_reading(self) -> None:
        self._pausing = False
        if self._paused:
            self._paused = False
            self._transport.resume_reading()

    def _pause(self) -> None:
        if self._pausing and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def _flush(self) -> None:
        if self._waiting:
            self._transport.write(b"".join(self._waiting))
            self._waiting.clear()


class _Server(uvicorn.Server):
    """Ends long polls when it is told to end, instead of waiting for them."""

    def stop(self) -> None:
        """From any thread."""
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.config.app.state.runtime.hub.close()  # type: ignore[union-attr]
        await super().shutdown(sockets)


def url_of(listener: socket.socket) -> str:
    """Where clients on this machine reach the socket."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _at_eof(stop: Callable[[], None]) -> None:
    """Whoever started us holds the other end of standard input, and its end is our end."""

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        stop()

    threading.Thread(target=watch, name="until-eof", daemon=True).start()
