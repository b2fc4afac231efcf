"""The requests of the express lane in the frames of one WebSocket."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.server.http import Http
from tests.support.services import LiveService

Start = Callable[[str], LiveService]
DEADLINE = 20.0


@contextmanager
def lane(live: LiveService, token: str | None = None) -> Iterator[ClientConnection]:
    headers = {"Authorization": f"Bearer {live.token if token is None else token}"}
    with connect(f"ws://{live.host}:{live.port}/lane", additional_headers=headers) as connection:
        yield connection


def answer(connection: ClientConnection) -> tuple[int, int, bytes]:
    """(number, status, body) of the next one."""
    frame = connection.recv(timeout=DEADLINE)
    assert isinstance(frame, bytes)
    head, _, body = frame.partition(b"\n")
    number, status = map(int, head.split())
    return number, status, body


def test_requests_are_answered_as_over_http_each_when_it_is_done(live: LiveService, http: Http) -> None:
    site = http.ok("POST", "/sites", {"name": f"lane-{live.pid}"})["id"]
    app = http.ok("POST", "/apps", {"site_id": site, "name": "true", "command_template": "true"})["id"]
    cursor = http.ok("GET", "/events/feed")["cursor"]
    with lane(live) as connection:
        connection.send(f"7 GET /events/feed?timeout=30&kind=job&site_id={site}&cursor={cursor}\n".encode())
        connection.send(b"8 POST /jobs key-of-a-lane\n" + json.dumps([{"app_id": app, "workdir": "w"}]).encode())
        answers = {number: (status, json.loads(body)) for number, status, body in (answer(connection) for _ in "12")}
    created = http.ok("POST", "/jobs", [{"app_id": app, "workdir": "w"}], headers={"Idempotency-Key": "key-of-a-lane"})
    assert answers[8] == (201, created)
    assert answers[7][0] == 200
    assert [event["subject_id"] for event in answers[7][1]["events"]] == [created[0]["id"]]


def test_refusals_are_those_of_http(live: LiveService, http: Http) -> None:
    body = json.dumps([{"app_id": 10**9, "workdir": "w"}]).encode()
    over_http = http("POST", "/jobs", body)
    with lane(live) as connection:
        connection.send(b"1 POST /jobs\n" + body)
        assert answer(connection) == (1, over_http.status, over_http.body)
        connection.send(b"2 POST /jobs\n{")
        assert answer(connection)[1] == 422


def test_other_requests_are_for_http(live: LiveService) -> None:
    with lane(live) as connection:
        connection.send(b"1 GET /jobs\n")
        number, status, body = answer(connection)
        assert (number, status) == (1, 422)
        assert "send it over HTTP" in json.loads(body)["message"]


@pytest.mark.parametrize("frame", [b"", b"x GET /jobs\n", b"1 GET jobs\n", b"1 GET /jobs a b\n", b"1\n", b"\xff" * 9])
def test_what_is_no_request_ends_the_lane(live: LiveService, frame: bytes) -> None:
    with lane(live) as connection:
        connection.send(frame)
        with pytest.raises(ConnectionClosed) as ended:
            connection.recv(timeout=DEADLINE)
        assert ended.value.rcvd is not None
        assert ended.value.rcvd.code == 1002


def test_who_is_unknown_gets_none(live: LiveService) -> None:
    with pytest.raises(InvalidStatus) as refused, lane(live, "wrong"):
        pass
    assert refused.value.response.status_code == 403


def test_a_token_that_is_revoked_opens_nothing_any_more(live: LiveService, http: Http) -> None:
    token = http.ok("POST", "/auth/tokens", {"name": "lane"})
    with lane(live, token["token"]) as connection:
        connection.send(b"1 GET /events/feed\n")
        assert answer(connection)[:2] == (1, 200)
        http.ok("DELETE", f"/auth/tokens/{token['id']}")
        connection.send(b"2 GET /events/feed\n")
        assert answer(connection)[:2] == (2, 401)


def test_more_requests_than_are_answered_at_a_time_wait(live: LiveService, http: Http) -> None:
    from balsam_exec.server.routes.lane import MOST

    cursor = http.ok("GET", "/events/feed")["cursor"]
    with lane(live) as connection:
        for number in range(MOST):
            connection.send(f"{number} GET /events/feed?timeout=1&cursor={cursor}&subject_id={10**9}\n".encode())
        connection.send(f"{MOST} GET /events/feed\n".encode())
        numbers = [answer(connection)[0] for _ in range(MOST + 1)]
    assert sorted(numbers) == list(range(MOST + 1))
    assert numbers[0] != MOST


def test_the_service_ends_though_lanes_are_open(start_service: Start, sqlite_url: str) -> None:
    live = start_service(sqlite_url)
    cursor = Http(live).ok("GET", "/events/feed")["cursor"]
    with lane(live) as connection:
        connection.send(f"1 GET /events/feed?timeout=60&cursor={cursor}\n".encode())
        live.stop()
    assert "Traceback" not in live.log
