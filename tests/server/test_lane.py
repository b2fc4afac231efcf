"""The requests of the express lane in the frames of one WebSocket."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.types import Message
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from balsam_exec.server.app import _respond
from balsam_exec.server.auth import Authenticator
from balsam_exec.server.routes.lane import serve
from balsam_exec.server.service import create, update, users
from tests.server.http import Http
from tests.server.world import World
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


# --- requests that stand


class Bench:
    """A site with jobs to make, and a session there."""

    def __init__(self, http: Http) -> None:
        self.http = http
        self.site = http.ok("POST", "/sites", {"name": uuid.uuid4().hex})["id"]
        self.app = http.ok("POST", "/apps", {"site_id": self.site, "name": "true", "command_template": "true"})["id"]
        self.session = http.ok("POST", "/sessions", {"site_id": self.site})["id"]

    def create(self, count: int = 1, **fields: Any) -> list[int]:
        specs = [{"app_id": self.app, "workdir": "w", **fields}] * count
        return [job["id"] for job in self.http.ok("POST", "/jobs", specs)]

    def keep_acquiring(self, connection: ClientConnection, key: str = "key", **wanted: Any) -> None:
        body = {"max_jobs": 9, "max_nodes": 1, "timeout": 60, **wanted}
        connection.send(f"+1 POST /sessions/{self.session}/acquire {key}\n".encode() + json.dumps(body).encode())

    def acquire(self, key: str, **wanted: Any) -> list[int]:
        body = {"max_jobs": 9, "max_nodes": 1, **wanted}
        found = self.http.ok("POST", f"/sessions/{self.session}/acquire", body, headers={"Idempotency-Key": key})
        return [job["id"] for job in found["jobs"]]


@pytest.fixture
def bench(http: Http) -> Bench:
    return Bench(http)


def jobs(connection: ClientConnection) -> list[int]:
    """What the next answer to request 1 gives; it is not the last."""
    number, status, body = answer(connection)
    assert (number, status) == (1, 200)
    return [job["id"] for job in json.loads(body)["jobs"]]


@pytest.mark.parametrize("timeout", [0, 30])
def test_who_follows_the_feed_is_told_all_with_one_request(
    live: LiveService, http: Http, bench: Bench, timeout: int
) -> None:
    cursor = http.ok("GET", "/events/feed")["cursor"]
    with lane(live) as connection:
        connection.send(f"+1 GET /events/feed?timeout={timeout}&site_id={bench.site}&cursor={cursor}\n".encode())
        for _ in range(3):
            created = bench.create()  # the service has time for this
            number, status, body = answer(connection)
            assert (number, status) == (1, 200)
            told = json.loads(body)
            assert [event["subject_id"] for event in told["events"]] == created
            rest = http.ok("GET", "/events/feed", query={"cursor": told["cursor"], "site_id": bench.site})
            assert rest["events"] == []  # PostgreSQL's cursor may have moved: others write there too


def test_who_follows_is_told_that_his_token_is_revoked(live: LiveService, http: Http, bench: Bench) -> None:
    token = http.ok("POST", "/auth/tokens", {"name": "lane"})
    cursor = http.ok("GET", "/events/feed")["cursor"]
    with lane(live, token["token"]) as connection:
        connection.send(f"+1 GET /events/feed?site_id={bench.site}&cursor={cursor}\n".encode())
        bench.create()
        assert answer(connection)[:2] == (1, 200)
        http.ok("DELETE", f"/auth/tokens/{token['id']}")
        bench.create()
        assert answer(connection)[:2] == (1, 401)
        bench.create()
        connection.send(b"2 GET /jobs\n")
        assert answer(connection)[0] == 2  # and nothing more of the first


def test_what_stands_ends_with_the_service(start_service: Start, sqlite_url: str) -> None:
    live = start_service(sqlite_url)
    bench = Bench(Http(live))
    with lane(live) as connection:
        cursor = Http(live).ok("GET", "/events/feed")["cursor"]
        connection.send(f"+2 GET /events/feed?cursor={cursor}\n".encode())
        bench.keep_acquiring(connection)
        assert bench.create()
        assert {answer(connection)[:2] for _ in "12"} == {(1, 200), (2, 200)}
        live.stop()
        with pytest.raises(ConnectionClosed):
            answer(connection)
    assert "Traceback" not in live.log


def test_a_standing_acquire_gives_little_by_little(live: LiveService, bench: Bench) -> None:
    before = bench.create(2)
    with lane(live) as connection:
        bench.keep_acquiring(connection, max_jobs=5)
        assert jobs(connection) == before
        one = bench.create()
        assert jobs(connection) == one
        many = bench.create(3)
        assert jobs(connection) == many[:2]
        assert answer(connection) == (1, 204, b"")
        assert bench.acquire("another") == many[2:]


def test_a_standing_acquire_gives_no_more_than_has_room(live: LiveService, bench: Bench) -> None:
    with lane(live) as connection:
        bench.keep_acquiring(connection, max_aggregate_nodes=1)
        first = bench.create(node_packing_count=3)
        assert jobs(connection) == first
        rest = bench.create(3, node_packing_count=3)
        assert jobs(connection) == rest[:2]
        assert answer(connection)[:2] == (1, 204)


def test_a_standing_acquire_ends_in_time(live: LiveService, bench: Bench) -> None:
    with lane(live) as connection:
        began = time.monotonic()
        bench.keep_acquiring(connection, timeout=0.5)
        created = bench.create()
        assert jobs(connection) == created
        assert answer(connection)[:2] == (1, 204)
        assert 0.5 <= time.monotonic() - began < DEADLINE


def test_more_room_ends_a_standing_acquire(live: LiveService, http: Http, bench: Bench) -> None:
    created = bench.create()
    with lane(live) as connection:
        bench.keep_acquiring(connection)
        assert jobs(connection) == created
        report = f"2 POST /sessions/{bench.session}/report\n".encode()
        connection.send(report + b'{"reports": [], "widen": true}')
        assert {answer(connection)[:2] for _ in "12"} == {(1, 204), (2, 204)}


def test_a_standing_acquire_that_is_repeated_gives_all_that_is_held(live: LiveService, bench: Bench) -> None:
    with lane(live) as connection:
        bench.keep_acquiring(connection, "standing")
        held = bench.create()
        assert jobs(connection) == held
        held += bench.create(2)
        assert jobs(connection) == held[1:]
    others = Bench(bench.http)  # somewhere else, so nothing of it
    others.create()
    assert bench.acquire("standing") == held
    more = bench.create(2)
    assert bench.acquire("once", max_jobs=1) == more[:1]
    assert bench.acquire("once", max_jobs=1) == more[:1]
    with lane(live) as connection:
        bench.keep_acquiring(connection, "later")
        assert jobs(connection) == more[1:]
        assert bench.acquire("later") == held + more


def test_a_standing_acquire_whose_jobs_are_done_gives_others_when_it_is_repeated(
    live: LiveService, http: Http, bench: Bench
) -> None:
    with lane(live) as connection:
        bench.keep_acquiring(connection)
        [job] = bench.create()
        assert jobs(connection) == [job]
    report = {"job_id": job, "epoch": 1, "timestamp": "2026-01-01T00:00:00Z"}
    done = [{**report, "state": state} for state in ("RUNNING", "RUN_DONE")]
    http.ok("POST", f"/sessions/{bench.session}/report", {"reports": done})
    others = bench.create()
    assert bench.acquire("key") == others


def test_whom_a_request_wakes_is_answered_before_it(start_service: Start, sqlite_url: str) -> None:
    live = start_service(sqlite_url)
    bench = Bench(Http(live))
    body = json.dumps([{"app_id": bench.app, "workdir": "w"}]).encode()
    with lane(live) as connection:
        bench.keep_acquiring(connection, max_jobs=20)
        for number in range(2, 12):
            connection.send(b"%d POST /jobs\n" % number + body)
            assert [answer(connection)[:2] for _ in "12"] == [(1, 200), (number, 201)]


@pytest.mark.parametrize("target", ["GET /jobs", "POST /jobs", "POST /sessions/7/report", "POST /events/feed"])
def test_what_cannot_stand_is_refused(live: LiveService, target: str) -> None:
    with lane(live) as connection:
        connection.send(f"+1 {target}\n[]".encode())
        assert answer(connection)[:2] == (1, 422)
        connection.send(b"2 GET /events/feed\n")
        assert answer(connection)[:2] == (2, 200)


def test_a_standing_request_is_refused_as_others_are(live: LiveService) -> None:
    with lane(live) as connection:
        connection.send(f"+1 POST /sessions/{10**9}/acquire\n".encode() + b'{"max_jobs": 1, "max_nodes": 1}')
        assert answer(connection)[:2] == (1, 404)
        connection.send(b"+2 GET /events/feed?cursor=nonsense\n")
        assert answer(connection)[:2] == (2, 422)


# --- in one process


class Follower:
    """A lane in the process of its service, on which the feed is followed; what it hears."""

    def __init__(self, world: World, *targets: str) -> None:
        self.hub = world.runtime.hub
        self.heard: dict[int, list[int]] = {number: [] for number in range(len(targets))}
        self.reads = asyncio.Event()  #: whether he does
        self.reads.set()
        self.sending = asyncio.Event()
        token = world.write(users.create_token, world.owner, "lane", None)["token"].encode()
        app = SimpleNamespace(state=SimpleNamespace(runtime=world.runtime, authenticator=Authenticator(world.runtime)))
        scope = {"type": "websocket", "app": app, "headers": [(b"authorization", b"Bearer " + token)]}
        self._messages = asyncio.Queue[Message]()
        self._messages.put_nowait({"type": "websocket.connect"})
        for number, target in enumerate(targets):
            frame = f"+{number} GET /events/feed?cursor=0&kind=job{target}".encode()
            self._messages.put_nowait({"type": "websocket.receive", "bytes": frame})
        self.hub.start()
        self.lane = asyncio.create_task(serve(scope, self._messages.get, self._send, _respond))

    async def _send(self, message: Message) -> None:
        if message["type"] == "websocket.send":
            self.sending.set()
            await self.reads.wait()
            head, _, body = message["bytes"].partition(b"\n")
            self.heard[int(head.split()[0])] += [event["id"] for event in json.loads(body)["events"]]

    def leave(self) -> None:
        self._messages.put_nowait({"type": "websocket.disconnect"})


def in_one_process(test: Callable[[World], Awaitable[None]]) -> Callable[[str], None]:
    def run(sqlite_url: str) -> None:
        async def in_time(world: World) -> None:
            async with asyncio.timeout(DEADLINE):
                await test(world)

        with closing(World(sqlite_url)) as world:
            asyncio.run(in_time(world))

    run.__name__ = test.__name__
    return run


@in_one_process
async def test_who_follows_is_told_what_was_just_written_without_the_database(world: World) -> None:
    follower = Follower(world, "")
    while not follower.hub._waiting:
        await asyncio.sleep(0.001)
    world.runtime.read_brief = None  # type: ignore[method-assign,assignment]
    for told in (1, 2):
        await world.runtime.write_brief(create.create_jobs, world.owner, [world.spec()])
        while len(follower.heard[0]) < told:
            await asyncio.sleep(0.001)
    follower.leave()
    await follower.lane


async def _leave(world: World, *, reads: bool) -> None:
    follower, left = Follower(world, ""), []
    while not follower.hub._waiting:
        await asyncio.sleep(0.001)
    answering = asyncio.all_tasks() - {asyncio.current_task(), follower.lane}
    if not reads:
        follower.reads.clear()
    await world.runtime.write_brief(create.create_jobs, world.owner, [world.spec()])
    await follower.sending.wait()
    for task in answering:
        task.add_done_callback(lambda _: left.append(dict(follower.hub._waiting)))
    follower.leave()
    await asyncio.wait([follower.lane, *answering])
    follower.lane.result()
    assert left == [{}]


@in_one_process
async def test_who_follows_on_a_lane_that_ends_waits_no_more(world: World) -> None:
    await _leave(world, reads=True)


@in_one_process
async def test_who_is_gone_in_the_midst_of_an_answer_waits_no_more(world: World) -> None:
    await _leave(world, reads=False)


@in_one_process
async def test_who_follows_hears_everything_once_whoever_writes_it(world: World) -> None:
    follower = Follower(world, "", "&limit=2", "&tags=a:1&include_results=true")
    pink, runtime = [], world.runtime

    async def write(times: int) -> None:
        for number in range(times):
            write = runtime.write if number % 5 == times % 5 else runtime.write_brief
            spec = world.spec(tags={"a": str(number % 2)})
            body = await write(create.create_jobs, world.owner, [spec] * (1 + number % 3))
            created = [job["id"] for job in json.loads(body)]
            pink.extend(created if number % 2 else [])
            await runtime.write_brief(update.kill_jobs, world.owner, created[:1])

    await asyncio.gather(*map(write, (20, 21, 22)))
    told = {number: world.feed(0, kind=["job"])["events"] for number in (0, 1)}
    told[2] = [event for event in told[0] if event["subject_id"] in pink]
    expected = {number: [event["id"] for event in events] for number, events in told.items()}
    while any(len(follower.heard[number]) < len(expected[number]) for number in expected):
        await asyncio.sleep(0.001)
    assert follower.heard == expected
    follower.leave()
    await follower.lane
