from __future__ import annotations

import gc
import os
import pickle
import socket
import threading
import time

import pytest

from balsam_exec.client.service import Service
from balsam_exec.client.transport import Transport
from balsam_exec.model.errors import (
    BalsamError,
    ConfigurationError,
    Conflict,
    Forbidden,
    InvalidRequest,
    NotAuthenticated,
    NotFound,
    ServiceUnavailable,
    StaleLease,
    TooLarge,
)
from tests.client.scripted import Answer, ScriptedServer

REFUSED = b'{"error": "stale_lease", "message": "gone", "detail": {"job_ids": [7], "message": "x"}}'


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def test_the_token_and_the_key_go_into_headers() -> None:
    with ScriptedServer() as server:
        transport = Transport(server.url, "sesame")
        assert transport.request("POST", "/jobs", body=b"[]", key="k1", params=[("a", "1 2"), ("a", "+")]) == b"{}"
        transport.close()
    [asked] = server.asked
    assert (asked.method, asked.path, asked.body) == ("POST", "/jobs?a=1+2&a=%2B", b"[]")
    assert asked.headers["Authorization"] == "Bearer sesame"
    assert asked.headers["Idempotency-Key"] == "k1"
    assert asked.headers["Content-Type"] == "application/json"


def test_a_path_in_the_url_is_kept() -> None:
    with ScriptedServer() as server:
        transport = Transport(server.url + "/balsam/api/")
        transport.request("GET", "/health")
        transport.close()
    assert server.asked[0].path == "/balsam/api/health"


@pytest.mark.parametrize(
    ("status", "body", "kind", "text"),
    [
        (409, REFUSED, StaleLease, "gone"),
        (404, b'{"error": "not_found", "message": "no job 7"}', NotFound, "no job 7"),
        (422, b'{"error": "from_the_future", "message": "new"}', InvalidRequest, "new"),
        (401, b"", NotAuthenticated, "HTTP 401"),
        (403, b"<html>no", Forbidden, "<html>no"),
        (404, b"", NotFound, "GET /x"),
        (409, b"{}", Conflict, "HTTP 409"),
        (413, b"too big", TooLarge, "too big"),
        (418, b"", InvalidRequest, "HTTP 418"),
        (500, b"oops", BalsamError, "oops"),
    ],
)
def test_a_refusal_is_the_error_it_names_and_is_not_tried_again(
    status: int, body: bytes, kind: type[BalsamError], text: str
) -> None:
    with ScriptedServer(Answer(status, body)) as server:
        transport = Transport(server.url, "sesame")
        with pytest.raises(BalsamError) as caught:
            transport.request("GET", "/x", params=[("secret", "1")])
        transport.close()
    assert type(caught.value) is kind
    assert text in str(caught.value)
    assert len(server.asked) == 1


def test_the_detail_of_a_refusal_is_for_programs() -> None:
    with ScriptedServer(Answer(409, REFUSED)) as server:
        transport = Transport(server.url)
        with pytest.raises(StaleLease) as caught:
            transport.request("POST", "/x", body=b"")
        transport.close()
    assert caught.value.detail["job_ids"] == [7]


@pytest.mark.parametrize("status", [502, 503, 504])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_what_is_transient_is_tried_again(status: int, method: str) -> None:
    with ScriptedServer(Answer(status), Answer(status, b"busy")) as server:
        transport = Transport(server.url)
        assert transport.request(method, "/x") == b"{}"
        transport.close()
    assert len(server.asked) == 3


def test_a_cut_connection_is_tried_again_where_that_is_safe() -> None:
    cut = Answer(before=lambda: True)
    with ScriptedServer(cut, cut, cut) as server:
        transport = Transport(server.url)
        transport.request("GET", "/a")
        assert [asked.path for asked in server.asked] == ["/a"] * 4
        server.script.append(cut)
        with pytest.raises(ServiceUnavailable):
            transport.request("POST", "/b", body=b"{}")
        assert [asked.path for asked in server.asked[4:]] == ["/b"]
        server.script.append(cut)
        transport.request("POST", "/c", body=b"{}", key="k")
        assert [asked.headers["Idempotency-Key"] for asked in server.asked[5:]] == ["k", "k"]
        transport.close()


def test_a_post_that_was_never_sent_is_tried_again() -> None:
    port = unused_port()
    transport = Transport(f"http://127.0.0.1:{port}", deadline=0.3)
    started = time.monotonic()
    with pytest.raises(ServiceUnavailable, match="Connection refused"):
        transport.request("POST", "/x", body=b"{}")
    assert 0.05 < time.monotonic() - started < 5  # it did try more than once


def test_the_deadline_ends_the_retries() -> None:
    with ScriptedServer(*[Answer(503, b'{"error": "service_unavailable", "message": "full"}')] * 100) as server:
        transport = Transport(server.url, deadline=0.4)
        started = time.monotonic()
        with pytest.raises(ServiceUnavailable, match="full"):
            transport.request("GET", "/x")
        assert time.monotonic() - started < 5
        assert len(server.asked) > 1
        transport.close()


def test_retry_after_is_waited_for() -> None:
    with ScriptedServer(Answer(503, headers={"Retry-After": "1"})) as server:
        transport = Transport(server.url)
        started = time.monotonic()
        transport.request("GET", "/x")
        assert time.monotonic() - started >= 1
        transport.close()


def test_an_answer_that_does_not_come_is_unavailable() -> None:
    held = threading.Event()
    with ScriptedServer(Answer(before=lambda: held.wait(20) and None)) as server:
        transport = Transport(server.url, deadline=0)
        with pytest.raises(ServiceUnavailable, match="no answer in time"):
            transport.request("GET", "/x", timeout=0.1)
        held.set()
        transport.close()


def test_close_wakes_a_request_in_flight() -> None:
    arrived, held = threading.Event(), threading.Event()

    def hold() -> None:
        arrived.set()
        held.wait(20)

    with ScriptedServer(Answer(before=hold)) as server:
        transport = Transport(server.url)
        caught: list[BaseException] = []

        def ask() -> None:
            try:
                transport.request("GET", "/poll", timeout=30)
            except ServiceUnavailable as error:
                caught.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        assert arrived.wait(10)
        transport.close()
        thread.join(5)
        assert not thread.is_alive()
        assert len(caught) == 1
        held.set()
        with pytest.raises(ServiceUnavailable):
            transport.request("GET", "/after")


def test_one_connection_serves_many_requests() -> None:
    with ScriptedServer() as server:
        transport = Transport(server.url)
        for _ in range(5):
            transport.request("GET", "/x")
        assert transport._link is not None
        assert transport._link._pool.num_connections == 1
        transport.close()


def test_a_forked_child_has_connections_of_its_own() -> None:
    with ScriptedServer() as server:
        transport = Transport(server.url)
        transport.request("GET", "/parent")
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                transport.request("GET", "/child")
                transport.close()
                os.write(writing, b"ok")
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            assert pipe.read() == b"ok"
        os.waitpid(child, 0)
        transport.request("GET", "/parent again")  # its connection was not cut by the child's close
        assert transport._link is not None
        assert transport._link._pool.num_connections == 1
        transport.close()
    assert [asked.path for asked in server.asked] == ["/parent", "/child", "/parent%20again"]


def test_threads_share_a_transport() -> None:
    with ScriptedServer() as server:
        transport = Transport(server.url)
        threads = [
            threading.Thread(target=lambda: [transport.request("GET", "/x") for _ in range(20)]) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        transport.close()
    assert len(server.asked) == 160


@pytest.mark.parametrize("how", ["closed", "dropped"])
def test_nothing_is_left_of_its_connections(how: str) -> None:
    with ScriptedServer() as server:
        transport = Transport(server.url)
        transport.request("GET", "/x")
        assert not server.hung_up.acquire(blocking=False)
        if how == "closed":
            transport.close()
        else:
            del transport
            gc.collect()
        assert server.hung_up.acquire(timeout=20)


def test_plain_http_goes_through_the_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer() as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://me:pw@127.0.0.1:{proxy.port}")
        monkeypatch.setenv("http_proxy", f"http://me:pw@127.0.0.1:{proxy.port}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        transport = Transport("http://balsam.example/base")
        transport.request("GET", "/health")
        transport.close()
    [asked] = proxy.asked
    assert asked.path == "http://balsam.example/base/health"
    assert asked.headers["Host"] == "balsam.example"
    assert asked.headers["Proxy-Authorization"].startswith("Basic ")


def test_no_proxy_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{unused_port()}")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{unused_port()}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.0/8")
    monkeypatch.setenv("no_proxy", "127.0.0.0/8")
    with ScriptedServer() as server:
        transport = Transport(server.url, deadline=0)
        assert transport.request("GET", "/x") == b"{}"
        transport.close()


def test_a_redirect_is_not_followed_with_the_token() -> None:
    with ScriptedServer(Answer(307, headers={"Location": "https://elsewhere.example/x"})) as server:
        transport = Transport(server.url, "sesame")
        with pytest.raises(ConfigurationError, match="elsewhere"):
            transport.request("GET", "/x")
        transport.close()


@pytest.mark.parametrize(
    "url", ["", "balsam.example", "ftp://balsam.example", "http://", "http://me:pw@balsam.example"]
)
def test_what_is_no_service_url_is_refused_without_showing_a_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Transport(url)
    assert "pw" not in str(caught.value)


def test_a_service_survives_pickling_and_shows_no_token() -> None:
    service = Service("http://one", "sesame", default_site="here", deadline=3)
    again = pickle.loads(pickle.dumps(service))
    assert again == service
    assert (again.default_site, again._transport.deadline) == ("here", 3)
    assert "sesame" not in repr(again)
