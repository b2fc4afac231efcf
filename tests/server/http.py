"""A bare HTTP client for the service: says exactly what the test says, and shows exactly what comes back."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from tests.support.services import LiveService


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Http:
    """Requests to a live service with one token."""

    def __init__(self, live: LiveService, token: str | None = None, timeout: float = 30) -> None:
        self._live = live
        self._timeout = timeout
        self.token = live.token if token is None else token

    def __call__(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Any = (),
        headers: dict[str, str] | None = None,
    ) -> Answer:
        connection = http.client.HTTPConnection(self._live.host, self._live.port, timeout=self._timeout)
        sent = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        target = f"{path}?{urlencode(query, doseq=True)}" if query else path
        try:
            connection.request(method, target, data, {**sent, **(headers or {})})
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def ok(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        """The JSON of an answer that must be a success."""
        answer = self(method, path, body, **options)
        assert 200 <= answer.status < 300, (answer.status, answer.body)
        return answer.json if answer.body else None
