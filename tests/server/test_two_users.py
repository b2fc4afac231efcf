"""Two users never see each other, on any route."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from balsam_exec.server import admin
from tests.server.http import Http
from tests.server.test_feed import Campaign
from tests.support.services import LiveService


class Theirs:
    """One of everything, of a user whom `other` is not."""

    def __init__(self, live: LiveService) -> None:
        owner = Http(live)
        self.key = {"Idempotency-Key": f"k{time.monotonic_ns()}"}
        campaign = Campaign(owner)
        self.site = campaign.site
        slots = {"in": {"direction": "in", "local_path": "x"}}
        owner.ok("PATCH", f"/sites/{self.site}", {"transfer_locations": {"laptop": "ssh://laptop"}})
        spec = {"site_id": self.site, "name": "B", "hooks": ["run"], "payload": "AAAA", "transfers": slots}
        self.app = owner.ok("POST", "/apps", spec)["id"]
        job = {"app_id": self.app, "workdir": "w", "transfers": {"in": "laptop:/x"}, "tags": {"k": "v"}}
        self.job = owner.ok("POST", "/jobs", [job], headers=self.key)[0]["id"]
        self.transfer = owner.ok("GET", "/transfers", query={"job_id": self.job})["results"][0]["id"]
        batch_job = {"site_id": self.site, "num_nodes": 1, "wall_time_min": 1}
        self.batch_job = owner.ok("POST", "/batch-jobs", batch_job)["id"]
        self.session = owner.ok("POST", "/sessions", {"site_id": self.site})["id"]
        self.token = owner.ok("POST", "/auth/tokens", {"name": "mine"})["id"]
        self.runnable = campaign.create(1)[0]
        self.owner = owner


@pytest.fixture
def theirs(live: LiveService) -> Theirs:
    return Theirs(live)


@pytest.fixture
def other(live: LiveService) -> Http:
    name = f"user{time.monotonic_ns()}"
    admin.create_user(live.database, name, "secret")
    token = Http(live, token="").ok("POST", "/auth/login", {"username": name, "password": "secret"})["token"]
    return Http(live, token=token)


def test_ids_of_others_do_not_exist(theirs: Theirs, other: Http) -> None:
    requests: list[tuple[str, str, Any]] = [
        *(
            ("GET", f"/{path}/{item}", None)
            for path, item in (
                ("sites", theirs.site),
                ("apps", theirs.app),
                ("jobs", theirs.job),
                ("batch-jobs", theirs.batch_job),
                ("transfers", theirs.transfer),
            )
        ),
        ("PATCH", f"/sites/{theirs.site}", {"path": "/mine"}),
        ("DELETE", f"/sites/{theirs.site}", None),
        ("POST", "/apps", {"site_id": theirs.site, "name": "C", "command_template": "x"}),
        ("PUT", "/apps", {"site_id": theirs.site, "name": "B", "command_template": "x"}),
        ("PATCH", f"/apps/{theirs.app}", {"name": "Mine"}),
        ("DELETE", f"/apps/{theirs.app}", None),
        ("POST", "/jobs", [{"app_id": theirs.app, "workdir": "w"}]),
        ("PATCH", f"/jobs/{theirs.job}", {"state": "USER_KILLED"}),
        ("PATCH", "/jobs/bulk", [{"id": theirs.job, "state": "USER_KILLED"}]),
        ("DELETE", f"/jobs/{theirs.job}", None),
        ("POST", "/batch-jobs", {"site_id": theirs.site, "num_nodes": 1, "wall_time_min": 1}),
        ("PATCH", f"/batch-jobs/{theirs.batch_job}", {"state": "finished"}),
        ("DELETE", f"/batch-jobs/{theirs.batch_job}", None),
        ("POST", "/sessions", {"site_id": theirs.site}),
        ("PUT", f"/sessions/{theirs.session}", None),
        ("DELETE", f"/sessions/{theirs.session}", None),
        ("POST", f"/sessions/{theirs.session}/acquire", {"max_jobs": 1, "max_nodes": 1}),
        ("POST", f"/sessions/{theirs.session}/report", {"reports": []}),
        ("PATCH", f"/transfers/{theirs.transfer}", {"state": "done"}),
        ("POST", f"/jobs/{theirs.job}/read", {}),
        ("GET", f"/jobs/{theirs.job}/explain", None),
        ("POST", f"/sites/{theirs.site}/hooks/work", {}),
        ("POST", f"/sites/{theirs.site}/hooks/reports", {"reports": []}),
        ("GET", f"/sites/{theirs.site}/file-requests", None),
        ("PATCH", "/transfers/bulk", [{"id": theirs.transfer, "state": "done"}]),
        ("DELETE", f"/auth/tokens/{theirs.token}", None),
    ]
    for method, path, body in requests:
        answer = other(method, path, body)
        assert (answer.status, answer.json["error"]) == (404, "not_found"), (method, path, answer.body)
    assert theirs.owner.ok("GET", f"/jobs/{theirs.job}")["state"] == "READY"
    assert theirs.owner.ok("GET", f"/sites/{theirs.site}")["path"] == ""


def test_listings_have_ones_own_only(theirs: Theirs, other: Http) -> None:
    for path in ("sites", "apps", "jobs", "batch-jobs", "sessions", "transfers", "events"):
        assert theirs.owner.ok("GET", f"/{path}")["results"], path
        assert other.ok("GET", f"/{path}")["results"] == [], path
    for query in ({"tags": "k:v"}, {"id": theirs.job}, {"site_id": theirs.site}, {"app_name": "B"}):
        assert other.ok("GET", "/jobs", query=query)["results"] == []
        assert other.ok("GET", "/jobs/count", query=query) == {"count": 0}
        assert other.ok("GET", "/jobs/states", query=query) == []
    assert other.ok("GET", "/events", query={"job_id": theirs.job})["results"] == []
    assert len(other.ok("GET", "/auth/tokens")) == 1


def test_what_acts_on_many_does_not_touch_others(theirs: Theirs, other: Http) -> None:
    assert other.ok("PATCH", "/jobs", {"state": "USER_KILLED"}) == {"count": 0}
    assert other.ok("DELETE", "/jobs", query={"id": theirs.job}) == {"count": 0}
    assert other.ok("POST", "/jobs/kill", query={"id": theirs.job}) == {"killed": [], "ordered": [], "over": []}
    assert other.ok("POST", "/jobs/cancel", {"ids": [theirs.job, theirs.runnable]}) == {"job_ids": []}
    theirs.owner.ok("POST", "/jobs/cancel", {"ids": [theirs.runnable]})
    assert other.ok("GET", "/jobs/results", query={"id": theirs.runnable}) == {}
    assert str(theirs.runnable) in theirs.owner.ok("GET", "/jobs/results", query={"id": theirs.runnable})


def test_another_job_cannot_depend_on_theirs_or_report_it(theirs: Theirs, other: Http) -> None:
    mine = Campaign(other)
    child = {"app_id": mine.app, "workdir": "w", "parent_ids": [theirs.job]}
    assert other("POST", "/jobs", [child]).status == 404
    [job] = other.ok("POST", "/jobs", [{"app_id": mine.app, "workdir": "w"}])
    assert other("PATCH", f"/jobs/{job['id']}", {"parent_ids": [theirs.job]}).status == 404
    assert other.ok("GET", "/jobs", query={"child_id": theirs.job})["results"] == []
    session = other.ok("POST", "/sessions", {"site_id": mine.site})["id"]
    assert other("POST", "/sessions", {"site_id": mine.site, "batch_job_id": theirs.batch_job}).status == 404
    report = {"job_id": theirs.runnable, "epoch": 0, "state": "RUNNING", "timestamp": "2026-01-01T00:00:00Z"}
    refused = other("POST", f"/sessions/{session}/report", {"reports": [report]})
    assert (refused.status, refused.json["error"]) == (409, "stale_lease")


def test_another_cannot_answer_for_their_site(theirs: Theirs, other: Http) -> None:
    path = f"/sites/{theirs.site}/file-requests"
    answers: list[Any] = []
    asking = {"path": "secret", "timeout": 60}
    thread = threading.Thread(target=lambda: answers.append(theirs.owner("POST", f"/jobs/{theirs.job}/read", asking)))
    thread.start()
    [request] = theirs.owner.ok("GET", path, query={"timeout": 30})
    forged = {"code": "not_found", "message": "forged"}
    assert other("PUT", f"/file-requests/{request['id']}", forged).status == 404
    assert theirs.owner.ok("GET", path) == [request]
    theirs.owner.ok("PUT", f"/file-requests/{request['id']}", {"code": "not_found", "message": "true"})
    thread.join(30)
    assert [answer.json["message"] for answer in answers] == ["true"]


def test_the_feed_tells_ones_own_only(theirs: Theirs, other: Http) -> None:
    start = other.ok("GET", "/events/feed")["cursor"]
    assert other.ok("GET", "/events/feed", query={"cursor": 0})["events"] == []
    theirs.owner.ok("POST", "/jobs/cancel", {"ids": [theirs.job]})
    assert other.ok("GET", "/events/feed", query={"cursor": start})["events"] == []
    mine = Campaign(other)
    told = other.ok("GET", "/events/feed", query={"cursor": start})["events"]
    assert {event["site_id"] for event in told} == {mine.site}


def test_names_and_keys_are_ones_own(theirs: Theirs, other: Http) -> None:
    name = theirs.owner.ok("GET", f"/sites/{theirs.site}")["name"]
    assert other.ok("POST", "/sites", {"name": name})["id"] != theirs.site
    mine = Campaign(other)
    job = {"app_id": mine.app, "workdir": "w"}
    assert other.ok("POST", "/jobs", [job], headers=theirs.key)[0]["id"] != theirs.job
