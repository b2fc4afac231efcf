"""The server process: how it starts, whom it lets in, what it survives and how it ends."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from balsam_exec.model.errors import BalsamError, Conflict, NotFound
from balsam_exec.server import admin
from tests.server.http import Http
from tests.server.test_feed import Campaign, in_threads
from tests.support.services import LiveService

Start = Callable[[str], LiveService]


def test_it_is_healthy_and_small(sqlite_url: str, tmp_path: Path) -> None:
    with LiveService(sqlite_url, tmp_path) as live:
        health = Http(live, token="")("GET", "/health")
        assert health.status == 200
        assert health.json.keys() == {"status", "version", "database", "max_entity"}
        assert (health.json["status"], health.json["database"]) == ("ok", "sqlite")
        assert psutil.Process(live.pid).memory_info().rss < 120 * 2**20


def test_it_describes_itself(start_service: Start, sqlite_url: str) -> None:
    document = Http(start_service(sqlite_url)).ok("GET", "/openapi.json")
    assert {"/jobs", "/jobs/bulk", "/sessions/{session_id}/acquire", "/events/feed"} <= set(document["paths"])
    text = json.dumps(document)
    assert "$defs" not in text
    names = set(document["components"]["schemas"])
    referred = {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert referred <= names


def test_bootstrap_keeps_a_valid_token_and_other_keys(tmp_path: Path, database_url: str) -> None:
    file = tmp_path / "state" / "credentials.json"
    admin.bootstrap(database_url, file, "http://one")
    first = json.loads(file.read_text())
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.write_text(json.dumps({**first, "site": "mine"}))
    admin.bootstrap(database_url, file, "http://two")
    assert json.loads(file.read_text()) == {**first, "site": "mine", "url": "http://two"}
    file.write_text(json.dumps({"token": "wrong", "site": "mine"}))
    admin.bootstrap(database_url, file, "http://two")
    again = json.loads(file.read_text())
    assert again["site"] == "mine"
    assert again["token"] not in ("wrong", first["token"])
    file.write_text("{damaged")
    admin.bootstrap(database_url, file, "http://two")
    assert set(json.loads(file.read_text())) == {"url", "token"}


def test_users_log_in_with_their_passwords(start_service: Start, database_url: str) -> None:
    live = start_service(database_url)
    admin.create_user(database_url, "ann", "correct horse")
    with pytest.raises(Conflict):
        admin.create_user(database_url, "ann", "other")
    with pytest.raises(NotFound):
        admin.set_password(database_url, "bob", "x")
    nobody = Http(live, token="")
    for wrong in ({"username": "ann", "password": "wrong"}, {"username": "bob", "password": "correct horse"}):
        refused = nobody("POST", "/auth/login", wrong)
        assert (refused.status, refused.json["error"]) == (401, "not_authenticated")
    local = {"username": admin.LOCAL_USER, "password": ""}
    assert nobody("POST", "/auth/login", local).status == 401
    made = nobody.ok("POST", "/auth/login", {"username": "ann", "password": "correct horse", "token_name": "here"})
    ann = Http(live, token=made["token"])
    assert ann.ok("GET", "/auth/me")["username"] == "ann"
    [shown] = ann.ok("GET", "/auth/tokens")
    assert (shown["id"], shown["name"], "token" in shown) == (made["id"], "here", False)
    admin.set_password(database_url, "ann", "battery staple")
    assert nobody("POST", "/auth/login", {"username": "ann", "password": "correct horse"}).status == 401


def test_without_a_valid_token_nothing_is_answered(start_service: Start, sqlite_url: str) -> None:
    live = start_service(sqlite_url)
    for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": "Basic eDp4"}, {"Authorization": "Bearer "}):
        refused = Http(live, token="")("GET", "/jobs", headers=headers)
        assert (refused.status, refused.json["error"]) == (401, "not_authenticated")


def test_tokens_expire_and_are_stored_as_hashes_only(start_service: Start, sqlite_url: str, tmp_path: Path) -> None:
    live = start_service(sqlite_url)
    http = Http(live)
    made = http.ok("POST", "/auth/tokens", {"name": "brief", "expires_in_sec": 1})
    brief = Http(live, token=made["token"])
    brief.ok("GET", "/auth/me")
    deadline = time.monotonic() + 20
    while brief("GET", "/auth/me").status != 401:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("balsam.db*"))
    assert made["token"].encode() not in stored
    assert live.token.encode() not in stored


def test_a_kill_loses_nothing_that_was_answered(start_service: Start, database_url: str) -> None:
    live = start_service(database_url)
    http = Http(live)
    campaign = Campaign(http)
    ids = campaign.create(50)
    session = http.ok("POST", "/sessions", {"site_id": campaign.site})["id"]
    wanted = {"max_jobs": 10, "max_nodes": 1}
    key = {"Idempotency-Key": "first"}
    leased = http.ok("POST", f"/sessions/{session}/acquire", wanted, headers=key)["jobs"]
    live.restart()
    assert http.ok("GET", "/jobs/count") == {"count": 50}
    assert http.ok("POST", f"/sessions/{session}/acquire", wanted, headers=key)["jobs"] == leased
    more = http.ok("POST", f"/sessions/{session}/acquire", {**wanted, "max_jobs": 100})["jobs"]
    assert sorted(job["id"] for job in leased + more) == ids


@pytest.mark.parametrize("how", ["sigterm", "eof"])
def test_it_ends_soon_though_long_polls_wait(start_service: Start, sqlite_url: str, how: str) -> None:
    live = start_service(sqlite_url)
    http = Http(live)
    campaign = Campaign(http)
    session = http.ok("POST", "/sessions", {"site_id": campaign.site})["id"]
    cursor = campaign.cursor()
    asked = threading.Barrier(3)
    answers: list[object] = []

    def poll_feed() -> None:
        asked.wait(10)
        answers.append(http.ok("GET", "/events/feed", query={"cursor": cursor, "timeout": 50}))

    def poll_jobs() -> None:
        asked.wait(10)
        wanted = {"max_jobs": 1, "max_nodes": 1, "timeout": 50}
        answers.append(http.ok("POST", f"/sessions/{session}/acquire", wanted))

    def end() -> None:
        asked.wait(10)
        time.sleep(0.5)  # so that both are waiting; were one not, it would be refused and the test fail
        start = time.monotonic()
        assert live._process.stdin
        if how == "sigterm":
            os.kill(live.pid, signal.SIGTERM)
        else:
            live._process.stdin.close()
        live._process.wait(10)
        assert time.monotonic() - start < 2
        live._process.stdin.close()

    in_threads(poll_feed, poll_jobs, end)
    assert {"jobs": []} in answers
    assert {"cursor": cursor, "events": []} in answers


def test_expired_sessions_are_reaped_without_anyone_asking(start_service: Start, database_url: str) -> None:
    http = Http(start_service(database_url))
    campaign = Campaign(http)
    campaign.create(1)
    cursor = campaign.cursor()
    session = http.ok("POST", "/sessions", {"site_id": campaign.site, "ttl_sec": 1})["id"]
    [job] = http.ok("POST", f"/sessions/{session}/acquire", {"max_jobs": 1, "max_nodes": 1})["jobs"]
    running = {"job_id": job["id"], "epoch": job["epoch"], "state": "RUNNING", "timestamp": "2026-01-01T00:00:00Z"}
    http.ok("POST", f"/sessions/{session}/report", {"reports": [running]})
    query = {"cursor": cursor, "timeout": 30, "to_state": "RESTART_READY"}
    [event] = http.ok("GET", "/events/feed", query=query)["events"]
    assert event["subject_id"] == job["id"]
    late = http("POST", f"/sessions/{session}/report", {"reports": [{**running, "state": "RUN_DONE"}]})
    assert (late.status, late.json["error"]) == (404, "not_found")


def test_a_stale_report_is_a_409_that_names_the_jobs(start_service: Start, sqlite_url: str) -> None:
    http = Http(start_service(sqlite_url))
    campaign = Campaign(http)
    [job_id] = campaign.create(1)
    session = http.ok("POST", "/sessions", {"site_id": campaign.site})["id"]
    [job] = http.ok("POST", f"/sessions/{session}/acquire", {"max_jobs": 1, "max_nodes": 1})["jobs"]
    http.ok("PATCH", f"/jobs/{job_id}", {"state": "FAILED"})
    report = {"job_id": job_id, "epoch": job["epoch"], "state": "RUNNING", "timestamp": "2026-01-01T00:00:00Z"}
    refused = http("POST", f"/sessions/{session}/report", {"reports": [report]})
    assert (refused.status, refused.json["error"], refused.json["detail"]) == (
        *(409, "stale_lease"),
        {"job_ids": [job_id]},
    )


def test_a_database_that_cannot_be_opened_is_said_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "balsam_exec.server", "--database", f"sqlite:///{tmp_path}/no/such/dir/x.db"]
    ended = subprocess.run([*command, "--port", "0"], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode != 0
    assert "unable to open database file" in ended.stderr


def test_every_error_of_the_model_has_an_http_status() -> None:
    def tree(kind: type[BalsamError]) -> list[type[BalsamError]]:
        return [kind, *(sub for child in kind.__subclasses__() for sub in tree(child))]

    assert all(400 <= kind.status < 600 for kind in tree(BalsamError))
