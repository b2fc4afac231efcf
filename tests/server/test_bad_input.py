"""Whatever is sent, the answer is a 4xx in JSON that says which and why."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from http.client import HTTPConnection
from typing import Any

import pytest
from pydantic import ValidationError

from balsam_exec.model.base import MAX_BODY, MAX_BULK, MAX_ENTITY_LIMIT, MIN_ENTITY_LIMIT
from balsam_exec.server.config import ServerSettings
from tests.server.http import Http
from tests.support.services import LiveService

_names = itertools.count()


@pytest.fixture
def site(http: Http) -> int:
    found: int = http.ok("POST", "/sites", {"name": f"site {next(_names)}"})["id"]
    return found


@pytest.fixture
def app(http: Http, site: int) -> int:
    spec = {"site_id": site, "name": "Echo", "command_template": "echo {{ x }}", "parameters": {"x": {}}}
    found: int = http.ok("POST", "/apps", spec)["id"]
    return found


JOB = {"workdir": "w", "parameters": {"x": 1}}
FAR = 2**63


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"", 422, "JSON"),
        (b"{", 422, "JSON"),
        (b"\xff\xfe", 422, ""),
        (b"null", 422, "array"),
        (b"{}", 422, "array"),
        (b"[" * 10_000, 422, "JSON"),
        ([{}], 422, "app_id"),
        ([{"app_id": 0, **JOB}], 422, "0.app_id"),
        ([{"app_id": FAR, **JOB}], 422, "0.app_id"),
        ([{"app_id": "x", **JOB}], 422, "0.app_id"),
        ([{"app_id": FAR - 1, **JOB}], 404, str(FAR - 1)),
        ([{"app_id": "APP", **JOB, "colour": "red"}], 422, "0.colour"),
        ([{"app_id": "APP", **JOB, "workdir": "/etc"}], 422, "0.workdir"),
        ([{"app_id": "APP", **JOB, "workdir": "a/../b"}], 422, "0.workdir"),
        ([{"app_id": "APP", **JOB, "workdir": ""}], 422, "0.workdir"),
        ([{"app_id": "APP", **JOB, "workdir": "a\0b"}], 422, "NUL"),
        ([{"app_id": "APP", **JOB, "data": {"a": ["\0"]}}], 422, "NUL"),
        (b'[{"app_id": APP, "workdir": "\\ud800"}]', 422, "JSON"),
        (b'[{"app_id": APP, "workdir": "w", "parameters": {"x": 1}, "data": {"a": NaN}}]', 422, "NaN"),
        (b'[{"app_id": APP, "workdir": "w", "parameters": {"x": 1}, "data": {"a": -Infinity}}]', 422, "infinity"),
        (b'[{"app_id": APP, "workdir": "w", "parameters": {"x": 1}, "gpus_per_rank": NaN}]', 422, "0.gpus_per_rank"),
        ([{"app_id": "APP", **JOB, "num_nodes": 10**30}], 422, "0.num_nodes"),
        ([{"app_id": "APP", **JOB, "num_nodes": 1.5}], 422, "0.num_nodes"),
        ([{"app_id": "APP", **JOB, "tags": {"k": "v" * 201}}], 422, "0.tags"),
        ([{"app_id": "APP", **JOB, "tags": {"": "v"}}], 422, "0.tags"),
        ([{"app_id": "APP", **JOB, "tags": {"k": 1}}], 422, "0.tags"),
        ([{"app_id": "APP", **JOB, "arguments": "not base64!"}], 422, "0.arguments"),
        ([{"app_id": "APP", **JOB, "arguments": "AAAA" * (MAX_ENTITY_LIMIT // 3 + 1)}], 422, "0.arguments"),
        ([{"app_id": "APP", "workdir": "w"}], 422, "missing: x"),
        ([{"app_id": "APP", **JOB, "parent_ids": [FAR]}], 422, "parent_ids"),
        ([{"app_id": "APP", **JOB, "parent_ids": [FAR - 1]}], 404, "parent"),
        ([{"app_id": "APP", **JOB, "transfers": {"in": "x:y"}}], 422, "unknown: in"),
        ([{}] * (MAX_BULK + 1), 422, str(MAX_BULK)),
    ],
)
def test_jobs(http: Http, app: int, body: Any, status: int, says: str) -> None:
    if isinstance(body, bytes):
        body = body.replace(b"APP", str(app).encode())
    elif isinstance(body, list):
        body = [{k: app if v == "APP" else v for k, v in item.items()} for item in body]
    answer = http("POST", "/jobs", body)
    assert answer.status == status, answer.body
    assert set(answer.json) == {"error", "message", "detail"}
    assert says.lower() in answer.json["message"].lower()
    assert http.ok("GET", "/jobs/count", query={"app_id": app}) == {"count": 0}


def test_big_integers_and_escaped_backslashes_are_fine(http: Http, app: int) -> None:
    data = {"big": 10**100, "text": "\\u0000 is no NUL", "é": "😀"}
    [job] = http.ok("POST", "/jobs", [{"app_id": app, **JOB, "data": data}])
    assert http.ok("GET", f"/jobs/{job['id']}")["data"] == data


@pytest.mark.parametrize("path", ["sites", "apps", "jobs", "batch-jobs", "transfers"])
@pytest.mark.parametrize(
    ("wrong", "status"), [("0", 422), ("-1", 422), ("x", 422), ("1.5", 422), (str(FAR), 422), (str(FAR - 1), 404)]
)
def test_ids_in_paths(http: Http, path: str, wrong: str, status: int) -> None:
    answer = http("GET", f"/{path}/{wrong}")
    assert (answer.status, set(answer.json)) == (status, {"error", "message", "detail"})


@pytest.mark.parametrize(
    ("path", "query", "says"),
    [
        ("/jobs", {"colour": "red"}, "colour"),
        ("/jobs", {"state": "DANCING"}, "state"),
        ("/jobs", {"limit": 0}, "limit"),
        ("/jobs", {"limit": 10**6}, "limit"),
        ("/jobs", {"offset": -1}, "offset"),
        ("/jobs", {"ordering": "colour"}, "ordering"),
        ("/jobs", {"id": FAR}, "id"),
        ("/jobs", {"num_nodes__lt": 10**40}, "too large"),
        ("/jobs", {"num_nodes__lt": ["1", "2"]}, "twice"),
        ("/jobs", {"gpus_per_rank__lt": "nan"}, "gpus_per_rank__lt"),
        ("/jobs", {"tags": "x"}, "key:value"),
        ("/jobs", {"tags": "a\0:b"}, "NUL"),
        ("/jobs", {"workdir__contains": "\0"}, "NUL"),
        ("/jobs", {"created__lt": "yesterday"}, "created__lt"),
        ("/jobs", {"created__lt": "2024-01-01T00:00:00"}, "created__lt"),
        ("/jobs", {"created__lt": "0001-01-01T00:00:00+14:00"}, "calendar"),
        ("/jobs/results", {"id": "x"}, "id"),
        ("/jobs/results", {"ids": "1"}, "ids"),
        ("/sites", {"name__lt": "x"}, "name__lt"),
        ("/events/feed", {"cursor": "x"}, "cursor"),
        ("/events/feed", {"cursor": "9" * 50}, "cursor"),
        ("/events/feed", {"cursor": "-1"}, "cursor"),
        ("/events/feed", {"timeout": "61"}, "timeout"),
        ("/events/feed", {"timeout": "nan"}, "timeout"),
        ("/events", {"kind": "party"}, "kind"),
    ],
)
def test_queries(http: Http, path: str, query: dict[str, Any], says: str) -> None:
    answer = http("GET", path, query=query)
    assert answer.status == 422, answer.body
    assert says in answer.json["message"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/sites", {"name": ""}, 422, "invalid_request"),
        ("POST", "/sites", {"name": "x", "allowed_queues": []}, 422, "invalid_request"),
        ("POST", "/apps", {"site_id": 1, "name": "no-identifier", "command_template": ""}, 422, "invalid_request"),
        ("POST", "/apps", {"site_id": 1, "name": "Both"}, 422, "invalid_request"),
        ("POST", "/apps", {"site_id": FAR - 1, "name": "A", "command_template": "x"}, 404, "not_found"),
        ("POST", "/sessions", {"site_id": FAR - 1}, 404, "not_found"),
        ("POST", "/sessions", {"site_id": 1, "ttl_sec": 0}, 422, "invalid_request"),
        ("POST", "/sessions/1/acquire", {"max_jobs": 0, "max_nodes": 1}, 422, "invalid_request"),
        ("POST", f"/sessions/{FAR - 1}/acquire", {"max_jobs": 1, "max_nodes": 1}, 404, "not_found"),
        ("POST", f"/sessions/{FAR - 1}/report", {"reports": []}, 404, "not_found"),
        ("PUT", f"/sessions/{FAR - 1}", None, 404, "not_found"),
        ("POST", "/batch-jobs", {"site_id": 1, "num_nodes": 0, "wall_time_min": 1}, 422, "invalid_request"),
        ("PATCH", "/jobs/bulk", [{"state": "FAILED"}], 422, "invalid_request"),
        ("PATCH", "/jobs/bulk", [{"id": FAR - 1, "state": "FAILED"}], 404, "not_found"),
        ("PATCH", "/transfers/bulk", [{"id": FAR - 1, "state": "done"}], 404, "not_found"),
        ("POST", "/jobs/cancel", {"ids": [0]}, 422, "invalid_request"),
        ("DELETE", "/jobs", None, 422, "invalid_request"),
        ("POST", "/auth/tokens", {"name": "x", "expires_in_sec": 0}, 422, "invalid_request"),
        ("DELETE", f"/auth/tokens/{FAR - 1}", None, 404, "not_found"),
        ("GET", "/nowhere", None, 404, "not_found"),
        ("POST", "/health", None, 405, "invalid_request"),
    ],
)
def test_other_routes(http: Http, method: str, path: str, body: Any, status: int, code: str) -> None:
    answer = http(method, path, body)
    assert (answer.status, answer.json["error"]) == (status, code), answer.body
    assert answer.json["message"]


def test_an_announced_body_over_the_limit_is_refused(http: Http) -> None:
    answer = http("POST", "/jobs", b"[]", headers={"Content-Length": str(MAX_BODY + 1)})
    assert (answer.status, answer.json["error"]) == (413, "too_large")
    assert answer.json["detail"]["limit"] == MAX_BODY


def test_a_body_that_grows_over_the_limit_is_refused(
    start_service: Callable[[str], LiveService], sqlite_url: str
) -> None:
    """Nothing is announced with chunked encoding, so it is counted as it comes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BALSAM_SERVER_MAX_BODY", "100000")
        patch.setenv("BALSAM_SERVER_MAX_ENTITY", str(MIN_ENTITY_LIMIT))
        live = start_service(sqlite_url)
    connection = HTTPConnection(live.host, live.port, timeout=30)
    chunks = (b" " * 1000 for _ in range(200))
    connection.request("POST", "/jobs", chunks, {"Authorization": f"Bearer {live.token}"}, encode_chunked=True)
    response = connection.getresponse()
    assert (response.status, json.loads(response.read())["error"]) == (413, "too_large")
    connection.close()


def test_a_body_has_room_for_an_entity() -> None:
    url = "sqlite:///never-opened.db"
    ServerSettings(database_url=url, max_entity=MAX_ENTITY_LIMIT)
    with pytest.raises(ValidationError, match="max_body, 600000, has no room for an entity: set it to 709050 or more"):
        ServerSettings(database_url=url, max_body=600_000)
    for beyond in (MIN_ENTITY_LIMIT - 1, MAX_ENTITY_LIMIT + 1):
        with pytest.raises(ValidationError, match="max_entity"):
            ServerSettings(database_url=url, max_entity=beyond)


def test_too_long_a_key_is_refused(http: Http) -> None:
    assert http("POST", "/jobs", [], headers={"Idempotency-Key": "k" * 201}).status == 422
    assert http("POST", "/jobs", [], headers={"Idempotency-Key": ""}).status == 422
    assert http.ok("POST", "/jobs", [], headers={"Idempotency-Key": "k" * 200}) == []
