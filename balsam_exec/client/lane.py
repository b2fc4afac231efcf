"""A lane: short requests to the service side by side over one WebSocket, without a thread for each.

Whoever has something to ask sends it himself; one thread reads what comes, when it likes to or the descriptor is ready,
and hands each answer to who asked. It is a short way beside HTTP's, never the only one: there is none through proxies
or TLS or at older services, and what was not answered when it ends is asked again over HTTP.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlencode, urlsplit

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError
from websockets.client import ClientProtocol
from websockets.exceptions import WebSocketException
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from balsam_exec.client.lookups import adapter, key_of_chunk, url_params
from balsam_exec.client.transport import CONNECT_TIMEOUT, proxy_of, refusal
from balsam_exec.model.base import MAX_BODY
from balsam_exec.model.errors import BalsamError, ServiceUnavailable
from balsam_exec.model.events import Feed
from balsam_exec.model.jobs import JobCreated, JobSpec
from balsam_exec.model.queries import FeedQuery
from balsam_exec.model.sessions import Acquired, AcquireRequest, Report, ReportBatch

log = logging.getLogger(__name__)
T = TypeVar("T")

#: Bytes of a request that fits; so many are buffered by the system, and sending them waits for nobody.
SHORT = 64 * 1024
_CHUNK = 256 * 1024
#: Seconds that are waited for at once at most; the system takes no more than 24 days.
_LONG = 20 * 86400.0
#: Seconds of silence, seconds between probes, and how many of them, after which a machine is gone.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))

#: Takes the answer or the error; called by `Lane.read`.
Then = Callable[[T | BalsamError], None]
#: Takes one answer after the other until it gets the error, or None: there will be no more.
ThenOn = Callable[[T | BalsamError | None], None]


class _Asked(NamedTuple):
    method: str
    target: str
    kind: Any  #: of the answer; None: it has no body
    then: Callable[[Any], None]
    stands: bool  #: for more than one answer, while their status is 200

    def answer(self, status: int, body: bytes) -> Any:
        """What the answer says, or the error."""
        if status >= 300:
            return refusal(self.method, self.target, status, body)
        try:
            return None if self.kind is None or status == 204 else adapter(self.kind).validate_json(body)
        except ValidationError as error:
            return BalsamError(f"{self.method} {self.target}: the answer cannot be understood: {error}")


class Lane:
    """One connection. What asks may be called by any thread and says whether the request is on its way; if so, its
    `then` is called once, by the thread that reads. ServiceUnavailable: the lane has ended, it may be done or not."""

    @classmethod
    def open(cls, url: str, token: str | None) -> Lane | None:
        """A lane to the service at this URL; None where there is none to be had."""
        parts = urlsplit(url)
        if parts.scheme != "http" or proxy_of(url) is not None:
            return None
        address = parts.hostname or "", parts.port or 80
        try:
            connection = socket.create_connection(address, timeout=CONNECT_TIMEOUT)
            try:
                return cls(connection, f"ws://{parts.netloc}{parts.path}/lane", token)
            except BaseException:
                connection.close()
                raise
        except (OSError, WebSocketException) as error:
            log.info("no lane to %s: %s", url, error)
            return None

    def __init__(self, connection: socket.socket, url: str, token: str | None) -> None:
        """Raises OSError or WebSocketException if it cannot be opened."""
        self._socket = connection
        self._protocol = ClientProtocol(parse_uri(url), max_size=MAX_BODY)
        self._lock = threading.Lock()  # of the protocol and what is asked
        self._asked: dict[bytes, _Asked] = {}
        self._count = 0
        self._pid = os.getpid()
        self._open = True
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
        self._shake_hands(token)
        connection.settimeout(None)
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._ready = select.poll()
        for fd in (connection.fileno(), self._bell):
            self._ready.register(fd, select.POLLIN)

    def _shake_hands(self, token: str | None) -> None:
        request = self._protocol.connect()
        if token:
            request.headers["Authorization"] = f"Bearer {token}"
        self._protocol.send_request(request)
        self._flush()
        while self._protocol.state is State.CONNECTING and self._protocol.handshake_exc is None:
            self._receive(self._socket.recv(_CHUNK))
        if self._protocol.handshake_exc is not None:
            raise self._protocol.handshake_exc
        self._protocol.events_received()  # the answer to the handshake

    def fileno(self) -> int:
        return self._socket.fileno()

    # --- what can be asked; the methods of `Service` of these names say more

    def create_jobs(self, specs: Sequence[JobSpec], key: str, then: Then[list[JobCreated]]) -> bool:
        try:
            body = adapter(list[JobSpec]).dump_json(list(specs), exclude_defaults=True)
        except PydanticSerializationError:
            return False  # the usual way says what is wrong
        return self._ask("POST", "/jobs", body, key_of_chunk(key, 0, len(specs)), list[JobCreated], then)

    def follow(self, path: str, cursor: str, then: ThenOn[Feed]) -> bool:
        """All that comes after the cursor; `path` is `path_of_feed` of a query without one."""
        return self._ask("GET", f"{path}&cursor={cursor}", b"", None, Feed, then, stands=True)

    def acquire(self, session_id: int, request: AcquireRequest, key: str, then: Then[Acquired]) -> bool:
        return self._acquire(session_id, request, key, then, stands=False)

    def keep_acquiring(self, session_id: int, request: AcquireRequest, key: str, then: ThenOn[Acquired]) -> bool:
        """What is asked for little by little. Repeated elsewhere, the call with the key gives all of it again."""
        return self._acquire(session_id, request, key, then, stands=True)

    def _acquire(self, session_id: int, request: AcquireRequest, key: str, then: Any, *, stands: bool) -> bool:
        body = request.model_dump_json(exclude_defaults=True).encode()
        return self._ask("POST", f"/sessions/{session_id}/acquire", body, key, Acquired, then, stands=stands)

    def report(self, session_id: int, reports: Sequence[Report], widen: bool, then: Then[None]) -> bool:
        body = ReportBatch(reports=list(reports), widen=widen).model_dump_json(exclude_defaults=True).encode()
        return self._ask("POST", f"/sessions/{session_id}/report", body, None, None, then)

    # --- the connection

    def wait(self, timeout: float) -> bool:
        """Whether there is something to read; it waits so many seconds for that, or until somebody calls `rouse`."""
        found = [fd for fd, _ in self._ready.poll(min(max(0.0, timeout), _LONG) * 1000)]
        if self._bell in found:
            os.eventfd_read(self._bell)
        return self._socket.fileno() in found

    def rouse(self) -> None:
        with self._lock:
            if self._open:
                os.eventfd_write(self._bell, 1)

    def read(self) -> bool:
        """Wait for what comes and hand it on; False when the lane has ended and everybody was told so."""
        try:
            data = self._socket.recv(_CHUNK)
        except OSError:
            data = b""
        with self._lock:
            self._receive(data)
            frames = [event for event in self._protocol.events_received() if isinstance(event, Frame)]
            ended = not data or self._protocol.state is not State.OPEN
            if not ended:
                ended = not self._flush()  # an answer to a ping
        for frame in frames:
            if frame.opcode is Opcode.BINARY:
                self._answer(bytes(frame.data))
        if ended:
            self._end()
        return not ended

    def close(self) -> None:
        """End it. Who reads is woken, and has to read to the end."""
        with self._lock:
            self._open = False
            if self._pid == os.getpid():
                _shut(self._socket)

    def _ask(
        self,
        method: str,
        target: str,
        body: bytes,
        key: str | None,
        kind: Any,
        then: Then[Any],
        *,
        stands: bool = False,
    ) -> bool:
        if len(body) + len(target) > SHORT:
            return False
        with self._lock:
            if not self._open or self._pid != os.getpid():
                return False
            self._count += 1
            number = b"%d" % self._count
            words = f"{method} {target} {key}" if key else f"{method} {target}"
            self._protocol.send_binary(b"%b%b %b\n%b" % (b"+" * stands, number, words.encode(), body))
            self._asked[number] = _Asked(method, target, kind, then, stands)
            self._flush()
            return True

    def _receive(self, data: bytes) -> None:
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()

    def _flush(self) -> bool:
        """Send what the protocol has to send. What the system does not take at once will not be taken: it has ended."""
        data = b"".join(self._protocol.data_to_send())
        with suppress(OSError):
            if not data or self._socket.send(data, socket.MSG_DONTWAIT) == len(data):
                return True
        _shut(self._socket)  # who reads will see to the rest
        return False

    def _answer(self, frame: bytes) -> None:
        head, _, body = frame.partition(b"\n")
        number, _, status = head.partition(b" ")
        with self._lock:
            asked = self._asked[number]
        asked.then(asked.answer(int(status), body))
        if not (asked.stands and status == b"200"):
            with self._lock:
                del self._asked[number]

    def _end(self) -> None:
        with self._lock:
            self._open = False
            left, self._asked = self._asked, {}
            self._socket.close()
            os.close(self._bell)
        for asked in left.values():
            asked.then(ServiceUnavailable("the lane to the service has ended"))


def path_of_feed(query: FeedQuery) -> str:
    """What asks for the feed; made once by who asks again and again."""
    return f"/events/feed?{urlencode(url_params(query))}"


def _shut(connection: socket.socket) -> None:
    """End it, which wakes who reads it."""
    with suppress(OSError):  # it has ended already
        connection.shutdown(socket.SHUT_RDWR)
