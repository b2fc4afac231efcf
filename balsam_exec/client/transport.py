"""HTTP beneath the client: one keep-alive pool, errors as exceptions, retries that know transient from final.

The pool is urllib3's own, a third of the CPU of a requests call (170 against 540 microseconds, measured); proxies and
certificates follow the environment as they do with requests.
"""

from __future__ import annotations

import os
import random
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode, urlsplit

import urllib3
from pydantic import BaseModel, ValidationError
from urllib3.exceptions import HTTPError, LocationParseError, NewConnectionError, PoolError, SSLError
from urllib3.exceptions import TimeoutError as NoAnswer
from urllib3.util import Timeout, make_headers

from balsam_exec.model.errors import (
    BY_CODE,
    BalsamError,
    ConfigurationError,
    Conflict,
    Forbidden,
    InvalidRequest,
    NotAuthenticated,
    NotFound,
    ServiceUnavailable,
    TooLarge,
)

#: Seconds to go on retrying what is transient, and to wait for a connection and for an answer.
DEADLINE = 60.0
CONNECT_TIMEOUT = 10.0
READ_TIMEOUT = 60.0
#: Bytes of a body that is sent in one piece with its headers.
_SHORT = 64 * 1024

_IDEMPOTENT = frozenset({"GET", "PUT", "DELETE"})
_TRANSIENT = frozenset({502, 503, 504})
_BY_STATUS: dict[int, type[BalsamError]] = {
    401: NotAuthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
}

Params = Iterable[tuple[str, str]]


class _ErrorBody(BaseModel):
    """What the service answers when it refuses."""

    error: str
    message: str
    detail: dict[str, Any] = {}


class Transport:
    """Requests to one service. Thread-safe, and safe to use in a forked child (which gets connections of its own)."""

    def __init__(self, url: str, token: str | None = None, *, deadline: float = DEADLINE) -> None:
        """Raises ConfigurationError for a URL that cannot be one of a service."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationError(
                f"{parts.hostname or url!r} is not the URL of a service: it starts with http(s)://"
            )
        if parts.username or parts.password:
            raise ConfigurationError("a service's URL holds no user name or password: use a token")
        self.url = url.rstrip("/")
        self.deadline = deadline
        self._token = token
        self._headers = {"Accept": "application/json", "User-Agent": "balsam-exec"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._link: _Link | None = None
        self._closed = threading.Event()

    def __repr__(self) -> str:
        return f"Transport({self.url!r})"

    def sibling(self) -> Transport:
        """The same service and token over other connections; it can be closed alone."""
        return Transport(self.url, self._token, deadline=self.deadline)

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Params = (),
        body: bytes | None = None,
        key: str | None = None,
        idempotent: bool = False,
        timeout: float = READ_TIMEOUT,
        deadline: float | None = None,
    ) -> bytes:
        """The body of the answer.

        `key` is the Idempotency-Key. A GET, PUT, DELETE, a request with a key or one said to be `idempotent` is retried
        while the trouble is transient, for up to `deadline` seconds; any other only if it was never sent.
        Raises the error that the service names, or ServiceUnavailable.
        """
        query = urlencode(list(params))
        target = f"{path}?{query}" if query else path
        headers = self._headers
        if body is not None or key is not None:
            headers = {**headers, "Content-Type": "application/json"}
            if key is not None:
                headers["Idempotency-Key"] = key
        repeatable = idempotent or key is not None or method in _IDEMPOTENT
        give_up = time.monotonic() + (self.deadline if deadline is None else deadline)
        attempt = 0
        while True:
            try:
                return self._once(method, target, headers, body, timeout)
            except ServiceUnavailable as error:
                never_sent = isinstance(error.__cause__, NewConnectionError)
                pause = _pause(attempt, error.detail.get("retry_after"))
                if not (repeatable or never_sent) or time.monotonic() + pause > give_up:
                    raise
                attempt += 1
                if self._closed.wait(pause):
                    raise

    def close(self) -> None:
        """Close every connection. Requests that are in flight in other threads raise ServiceUnavailable at once."""
        self._closed.set()
        link, self._link = self._link, None
        if link is not None and link.pid == os.getpid():
            link.close()

    def _once(self, method: str, target: str, headers: Mapping[str, str], body: bytes | None, timeout: float) -> bytes:
        link = self._link
        if link is None or link.pid != os.getpid():
            # Not locked: of two threads that come here at once, one makes a pool in vain. A lock could be inherited
            # locked by a forked child, and the child must leave its parent's connections alone anyway.
            link = self._link = _Link(self.url, self._closed)
        try:
            response = link.send(method, target, headers, body, timeout)
        except HTTPError as error:
            if isinstance(error, SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
                message = f"the certificate of {self.url} is not trusted here: name its issuer's in REQUESTS_CA_BUNDLE"
                raise ConfigurationError(message) from error
            raise ServiceUnavailable(f"cannot reach {self.url}: {_reason(error)}") from error
        if response.status < 300:
            return response.data
        raise self._error(method, target, response)

    def _error(self, method: str, target: str, response: urllib3.BaseHTTPResponse) -> BalsamError:
        status = response.status
        if status < 400:
            where = urlsplit(response.headers.get("Location", "")).netloc
            return ConfigurationError(f"{self.url} redirects to {where or 'nowhere'}: use the service's own URL")
        error = refusal(method, target, status, response.data, response.reason or "no reason given")
        if isinstance(error, ServiceUnavailable) and (after := response.headers.get("Retry-After")):
            error.detail.setdefault("retry_after", after)
        return error


def refusal(method: str, target: str, status: int, body: bytes, reason: str = "") -> BalsamError:
    """The error that an answer of this status names."""
    try:
        said = _ErrorBody.model_validate_json(body)
    except ValidationError:
        text = body[:200].decode("utf-8", "replace").strip() or reason
        said = _ErrorBody(error="", message=f"{method} {target.partition('?')[0]}: HTTP {status}: {text}")
    kind = BY_CODE.get(said.error) or _BY_STATUS.get(status) or _class_of(status)
    error = kind(said.message)
    error.detail.update(said.detail)
    return error


def _class_of(status: int) -> type[BalsamError]:
    if status in _TRANSIENT:
        return ServiceUnavailable
    return InvalidRequest if status < 500 else BalsamError


def _reason(error: HTTPError) -> str:
    """What went wrong, without urllib3's objects and addresses in the text."""
    inner = error.__cause__ or error.__context__
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror
    if isinstance(error, NoAnswer):
        return "no answer in time"
    return f"{type(error).__name__}: {error}"


def _pause(attempt: int, retry_after: object) -> float:
    """Seconds before the next try: 50 ms doubling to 2 s, with jitter so that clients do not come back as one."""
    if isinstance(retry_after, str) and retry_after.isdigit():
        return float(min(int(retry_after), 30))
    return float(min(2.0, 0.05 * 2 ** min(attempt, 10)) * random.uniform(0.5, 1.0))


class _Link:
    """The connections of one process to the service."""

    def __init__(self, url: str, closed: threading.Event) -> None:
        self.pid = os.getpid()
        manager, self._headers, absolute = _manager(url)
        self._prefix = url if absolute else urlsplit(url).path
        self._pool = manager.connection_from_url(url)
        self._lock = threading.Lock()
        self._closed = closed
        self._connections: weakref.WeakSet[Any] = weakref.WeakSet()
        # Weakly: urllib3 keeps idle connections, and so their class, until the pool is gone that we have.
        self._pool.ConnectionCls = _tracked(self._pool.ConnectionCls, weakref.WeakMethod(self._opened))

    def send(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | None, timeout: float
    ) -> urllib3.BaseHTTPResponse:
        if self._closed.is_set():
            raise PoolError(self._pool, "closed")
        return self._pool.urlopen(
            method,
            self._prefix + target,
            body=body,
            headers={**self._headers, **headers} if self._headers else headers,
            retries=False,
            redirect=False,
            assert_same_host=False,  # through a proxy the target names another host
            timeout=Timeout(connect=CONNECT_TIMEOUT, read=timeout),
        )

    def close(self) -> None:
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            _interrupt(connection)
        self._pool.close()

    def _opened(self, connection: Any) -> None:
        with self._lock:
            self._connections.add(connection)
        if self._closed.is_set():  # `close` may have looked before this one was there
            _interrupt(connection)


def _tracked(base: Any, opened: weakref.WeakMethod[Callable[[Any], None]]) -> Any:
    class Tracked(base):  # type: ignore[misc]
        _gathered: list[bytes] | None = None

        def connect(self) -> None:
            super().connect()
            if (tell := opened()) is not None:
                tell(self)

        def request(self, method: str, url: str, body: bytes | None = None, *args: Any, **options: Any) -> None:
            """Headers and a short body leave together: each packet by itself would wake the service."""
            if body is None or len(body) > _SHORT:
                super().request(method, url, body, *args, **options)
                return
            gathered: list[bytes] = []
            self._gathered = gathered
            try:
                super().request(method, url, body, *args, **options)
            finally:
                self._gathered = None
            self.send(b"".join(gathered))

        def send(self, data: Any) -> None:
            if self._gathered is None:
                super().send(data)
            else:
                self._gathered.append(data)

    return Tracked


def _interrupt(connection: Any) -> None:
    """Wake whoever is blocked reading from a connection: shutdown does, close does not."""
    if connection.sock is not None:
        with suppress(OSError):
            socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)  # the plain one: TLS would want to talk


def _manager(url: str) -> tuple[urllib3.PoolManager, dict[str, str], bool]:
    """A pool manager as the environment wants it, the headers its proxy needs in each request, and whether requests
    name the whole URL (plain HTTP through a proxy)."""
    options: dict[str, Any] = {"maxsize": 16}  # connections kept alive: as many as threads commonly call at once
    if url.startswith("https:"):
        import certifi

        bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or certifi.where()
        options["ca_cert_dir" if os.path.isdir(bundle) else "ca_certs"] = bundle
    proxy = proxy_of(url)
    if proxy is None:
        return urllib3.PoolManager(**options), {}, False
    user = urlsplit(proxy)
    login = f"{user.username}:{user.password or ''}" if user.username else None
    headers = dict(make_headers(proxy_basic_auth=login)) if login else {}
    try:
        manager = urllib3.ProxyManager(proxy, proxy_headers=headers, **options)
    except LocationParseError:
        raise ConfigurationError("the proxy in the environment (HTTP_PROXY, HTTPS_PROXY) is not a URL") from None
    forward = url.startswith("http:")
    return manager, headers if forward else {}, forward


def proxy_of(url: str) -> str | None:
    """The proxy the environment asks for, by the rules of requests; requests is imported only when there is any."""
    if not any(name.lower().endswith("_proxy") and value for name, value in os.environ.items()):
        return None
    from requests.utils import get_environ_proxies, select_proxy

    found = select_proxy(url, get_environ_proxies(url, no_proxy=None))
    return f"http://{found}" if found and "://" not in found else found
