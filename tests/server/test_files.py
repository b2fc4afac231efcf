"""Reading files of jobs: requests wait for the site's agent, who asked is answered; and output files have names."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from balsam_exec.model.errors import Conflict, Forbidden, NotFound
from balsam_exec.model.files import FileAnswer, FileChunk, ReadRequest
from balsam_exec.model.jobs import JobPatch, JobSpec
from balsam_exec.server.service import files
from balsam_exec.server.store import files as store
from balsam_exec.server.store.types import moment
from tests.server.http import Answer, Http
from tests.server.test_feed import Campaign, in_threads
from tests.server.world import World
from tests.support.processes import wait_until
from tests.support.services import LiveService

CHUNK = {"data": "AP8=", "offset": 3, "size": 5, "modified": "2026-01-01T00:00:00Z"}


def command(world: World) -> int:
    return world.app("Echo", command_template="echo")


# --- names of output files


def test_output_files_are_kept_and_handed_to_the_launcher(world: World) -> None:
    app = command(world)
    named, usual = world.create(world.spec(app, stdout="logs/out", stderr="err"), world.spec(app))
    assert (world.job(named)["stdout"], world.job(named)["stderr"]) == ("logs/out", "err")
    leased = {job["id"]: job for job in world.acquire(world.open())}
    assert (leased[named]["stdout"], leased[named]["stderr"]) == ("logs/out", "err")
    for record in (world.job(usual), leased[usual]):
        assert not {"stdout", "stderr"} & set(record), "what is usual does not travel"


def test_output_files_can_be_changed_back(world: World) -> None:
    [job] = world.create(world.spec(command(world), stdout="a", stderr="b"))
    world.patch(job, stdout="c")
    assert (world.job(job)["stdout"], world.job(job)["stderr"]) == ("c", "b")
    world.patch(job, stdout="job.out", stderr="")
    assert not {"stdout", "stderr"} & set(world.job(job))


def test_output_files_of_a_held_job_stay(world: World) -> None:
    _, [leased] = world.started(world.spec(command(world)))
    with pytest.raises(Conflict, match="stdout"):
        world.patch(leased["id"], stdout="x")


@pytest.mark.parametrize("wrong", ["/etc/x", "../x", "a/../b", "a/", ".", "a/.", "x" * 1001])
def test_output_files_are_inside_the_workdir(wrong: str) -> None:
    for field in ("stdout", "stderr"):
        with pytest.raises(ValidationError):
            JobSpec(app_id=1, workdir="w", **{field: wrong})
        with pytest.raises(ValidationError):
            JobPatch(**{field: wrong})


# --- requests, without HTTP


def ask(world: World, job: int, **wanted: Any) -> files.Asked:
    found: files.Asked = world.write(files.ask, world.owner, job, ReadRequest(**wanted))
    return found


def waiting(world: World, *known: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = world.read(files.requests, world.owner, world.site, known, world.now)
    return found


def test_the_agent_is_told_all_it_needs(world: World) -> None:
    named, usual = world.create(world.spec(command(world), workdir="a/b", stdout="o"), world.spec())
    asked = [
        ask(world, named, offset=-5, length=7),
        ask(world, usual),
        ask(world, named, path="x/y"),
    ]
    first, *rest = waiting(world)
    assert first == {"id": asked[0].id, "job_id": named, "workdir": "a/b", "path": "o", "offset": -5, "length": 7}
    assert [request["path"] for request in rest] == ["job.out", "x/y"]
    assert [request["id"] for request in waiting(world, asked[0].id, asked[2].id)] == [asked[1].id]


def test_an_answered_request_is_not_handed_out_again(world: World) -> None:
    asked = ask(world, *world.create())
    answer = FileAnswer(chunk=FileChunk(data=b"\0\xff", offset=0, size=2, modified=moment(world.now)))
    assert world.read(files.answer_of, asked) is None
    world.write(files.give_answer, world.owner, asked.id, answer)
    assert waiting(world) == []
    assert world.read(files.answer_of, asked) == answer
    world.write(files.close, asked)
    with pytest.raises(NotFound, match="nobody waits"):
        world.write(files.give_answer, world.owner, asked.id, answer)


def test_nobody_asks_without_end(world: World) -> None:
    [job] = world.create()
    for _ in range(files.MAX_OPEN):
        ask(world, job, timeout=20)
    with pytest.raises(Conflict, match="100 files are being read"):
        ask(world, job)
    world.later(31)
    assert waiting(world) == [], "nobody waits for these any more"
    ask(world, job)


def test_forgotten_requests_are_reaped(world: World) -> None:
    [job] = world.create()
    ask(world, job, timeout=1)
    world.later(9)
    ask(world, job, timeout=1)
    world.later(5)
    world.write(lambda unit: store.forget(unit.connection, unit.now))
    assert len(waiting(world)) == 1
    assert world.read(lambda connection: store.open_requests(connection, world.owner, 0)) == 1


def test_the_errors_of_the_agent_are_raised(world: World) -> None:
    with pytest.raises(Forbidden, match="no"):
        files.chunk_of(FileAnswer(code="forbidden", message="no"))
    for wrong in ({}, {"code": "not_found", "chunk": CHUNK}, {"code": "error"}):
        with pytest.raises(ValidationError):
            FileAnswer.model_validate(wrong)


def test_why_a_site_is_unreachable(world: World) -> None:
    asked = ask(world, *world.create())

    def why(now: float) -> str:
        error = world.read(files.unreachable, world.owner, asked, 30.0, moment(world.now + round(now * 1e6)))
        assert error.detail["site_id"] == world.site
        return str(error)

    assert why(0).startswith("the agent of site 'here' did not answer within 30 s; it was never heard of: does it run")
    from balsam_exec.model.sites import SitePatch
    from balsam_exec.server.service import sites

    world.write(sites.patch_site, world.owner, world.site, SitePatch(refresh=True, hostname="theta"))
    assert "last heard of 12 s ago: does it run on theta? See `balsam site ls`" in why(12)
    assert "last heard of 2 min ago, at 2023-11-14 22:13:20 UTC" in why(179)
    assert "last heard of 3 h ago" in why(3 * 3600)
    assert "last heard of 5 d ago" in why(5 * 86400 + 5)


# --- over HTTP


@pytest.fixture
def ends(live: LiveService, start_service: Callable[[str], LiveService]) -> tuple[Http, Http]:
    """Who asks and the agent: on PostgreSQL at different server processes."""
    other = start_service(live.database) if live.database.startswith("postgresql") else live
    return Http(live, timeout=90), Http(other, token=live.token, timeout=90)


class Agent:
    """A stand-in for a site's agent: takes requests, and answers as the test says."""

    def __init__(self, http: Http, site: int) -> None:
        self._http = http
        self._site = site

    def next(self, *known: int) -> dict[str, Any]:
        """The next request; fails if none comes."""
        query = {"timeout": 60, "known": list(known)}
        [request] = self._http.ok("GET", f"/sites/{self._site}/file-requests", query=query)
        return dict(request)

    def answer(self, request: dict[str, Any], **answer: Any) -> Answer:
        return self._http("PUT", f"/file-requests/{request['id']}", answer)


def test_who_asks_is_answered(ends: tuple[Http, Http]) -> None:
    asker, agent_http = ends
    campaign = Campaign(asker)
    agent = Agent(agent_http, campaign.site)
    [job] = campaign.create(1)
    answers: list[Answer] = []

    def work() -> None:
        first = agent.next()
        assert (first["workdir"], first["path"], first["length"]) == ("w", "job.out", 65536)
        assert agent.answer(first, chunk=CHUNK).status == 204
        for code in ("not_found", "forbidden", "invalid_request"):
            assert agent.answer(agent.next(), code=code, message=f"it says {code}").status == 204

    def use() -> None:
        start = time.monotonic()
        answers.extend(asker("POST", f"/jobs/{job}/read", {"path": path}) for path in ("", "a", "b", "c"))
        assert time.monotonic() - start < 20, "who waits is woken"

    in_threads(work, use)
    chunk, *errors = answers
    assert (chunk.status, chunk.json) == (200, CHUNK)
    assert [(e.status, e.json["error"], e.json["message"]) for e in errors] == [
        (404, "not_found", "it says not_found"),
        (403, "forbidden", "it says forbidden"),
        (422, "invalid_request", "it says invalid_request"),
    ]


def test_a_whole_mebibyte(ends: tuple[Http, Http]) -> None:
    asker, agent_http = ends
    campaign = Campaign(asker)
    agent = Agent(agent_http, campaign.site)
    [job] = campaign.create(1)
    data = bytes(range(256)) * 4096
    got: list[Answer] = []

    def work() -> None:
        agent.answer(agent.next(), chunk={**CHUNK, "data": base64.urlsafe_b64encode(data).decode()})

    in_threads(work, lambda: got.append(asker("POST", f"/jobs/{job}/read", {"length": 2**20})))
    assert base64.urlsafe_b64decode(got[0].json["data"]) == data


def test_known_requests_do_not_wake_the_agent(ends: tuple[Http, Http]) -> None:
    asker, agent_http = ends
    campaign = Campaign(asker)
    agent = Agent(agent_http, campaign.site)
    [job] = campaign.create(1)

    taken = threading.Event()

    def work() -> None:
        first = agent.next()
        taken.set()
        second = agent.next(first["id"])
        assert second["path"] == "second"
        agent.answer(second, chunk=CHUNK)
        agent.answer(first, chunk=CHUNK)

    def use(path: str) -> None:
        assert asker("POST", f"/jobs/{job}/read", {"path": path, "timeout": 60}).status == 200

    def use_second() -> None:
        assert taken.wait(60)
        use("second")

    in_threads(work, lambda: use("first"), use_second)


def test_a_site_without_an_agent(http: Http) -> None:
    campaign = Campaign(http)
    [job] = campaign.create(1)
    answer = http("POST", f"/jobs/{job}/read", {"timeout": 0.1})
    assert (answer.status, answer.json["error"]) == (504, "site_unreachable")
    assert "did not answer within 0.1 s; it was never heard of" in answer.json["message"]
    assert answer.json["detail"] == {"site_id": campaign.site, "last_refresh": None}
    assert http.ok("GET", f"/sites/{campaign.site}/file-requests") == [], "the request is gone with who asked"


def test_who_went_away_leaves_no_request(live: LiveService) -> None:
    http = Http(live)
    campaign = Campaign(http)
    [job] = campaign.create(1)
    impatient = Http(live, timeout=0.3)
    with pytest.raises(TimeoutError):
        impatient("POST", f"/jobs/{job}/read", {"timeout": 1})
    path = f"/sites/{campaign.site}/file-requests"
    wait_until(lambda: not http.ok("GET", path), 20, "the request to be gone")


def test_a_stopping_service_says_so(start_service: Any, sqlite_url: str) -> None:
    live = start_service(sqlite_url)
    http = Http(live)
    campaign = Campaign(http)
    [job] = campaign.create(1)
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(http("POST", f"/jobs/{job}/read", {"timeout": 60})))
    thread.start()
    wait_until(lambda: bool(http.ok("GET", f"/sites/{campaign.site}/file-requests")), 20, "the request")
    live.stop()
    thread.join(20)
    assert [(answer.status, answer.json["error"]) for answer in answers] == [(503, "service_unavailable")]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"path": "../x"}, "relative"),
        ({"path": "/etc/passwd"}, "relative"),
        ({"path": "a\0b"}, "NUL"),
        ({"length": 2**20 + 1}, "length"),
        ({"length": -1}, "length"),
        ({"timeout": 61}, "timeout"),
        ({"offset": 2**63}, "offset"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_bad_requests(http: Http, body: Any, says: str) -> None:
    answer = http("POST", "/jobs/1/read", body)
    assert answer.status == 422
    assert says in answer.json["message"]
