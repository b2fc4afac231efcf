"""The change feed: nothing skipped, nothing told twice, whoever writes at the same time; and who waits is woken."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from balsam_exec.model.errors import InvalidRequest
from balsam_exec.model.jobs import Result
from balsam_exec.server.service import feed
from tests.server.http import Http
from tests.server.world import S, World
from tests.support.services import LiveService

DEADLINE = 60.0


def test_without_a_cursor_it_begins_at_its_end(world: World) -> None:
    world.create()
    start = world.feed(None)
    assert start["events"] == []
    [job_id] = world.create()
    told = world.feed(int(start["cursor"]))
    assert [event["subject_id"] for event in told["events"]] == [job_id]
    assert world.feed(int(told["cursor"]))["events"] == []


def test_pages_continue_where_they_ended(world: World) -> None:
    ids = world.create(*[world.spec()] * 7)
    cursor, told = 0, []
    while True:
        page = world.feed(cursor, limit=2, kind=["job"])
        if not page["events"]:
            break
        cursor = int(page["cursor"])
        told += [event["subject_id"] for event in page["events"]]
    assert told == ids


def test_filters(world: World) -> None:
    start = int(world.feed(None)["cursor"])
    [done] = world.finished(world.spec(tags={"k": "a", "x": "y"}))
    [other] = world.create(world.spec(tags={"k": "b"}))

    def told(**query: Any) -> list[tuple[int, str]]:
        events = world.feed(start, **query)["events"]
        return [(event["subject_id"], event["to_state"]) for event in events]

    assert told(to_state=[S.JOB_FINISHED, S.FAILED]) == [(done, S.JOB_FINISHED)]
    assert {subject for subject, _ in told(tags=["k:a", "x:y"])} == {done}
    assert {subject for subject, _ in told(tags=["k:b"])} == {other}
    assert {subject for subject, _ in told(subject_id=[other])} == {other}
    assert told(kind=["batch_job"]) == []
    assert told(site_id=[world.site + 1]) == []
    with pytest.raises(InvalidRequest):
        told(tags=["nonsense"])


def test_what_a_filter_leaves_out_is_passed(world: World) -> None:
    world.create(*[world.spec()] * 5)
    page = world.feed(0, to_state=["FAILED"])
    assert page["events"] == []
    assert page["cursor"] == world.feed(None)["cursor"]


def test_tags_say_nothing_about_other_kinds(world: World) -> None:
    start = int(world.feed(None)["cursor"])
    world.app("Another", hooks=["run"])
    assert [event["kind"] for event in world.feed(start, tags=["k:v"])["events"]] == ["app"]


def test_results_come_with_the_event_that_ended_the_job(world: World) -> None:
    [job_id] = world.create()
    [cancelled] = world.create()
    world.cancel(cancelled)
    session = world.open()
    [job] = world.acquire(session)
    world.run(session, job, result=Result(ok=True, value=b"\xff", return_code=0))
    events = world.feed(0, include_results=True, kind=["job"])["events"]
    ended = {event["subject_id"]: event["result"] for event in events if "result" in event}
    assert ended[job_id]["value"] == b"\xff"
    assert (ended[cancelled]["ok"], ended[cancelled]["error"]) == (False, "the job ended as USER_KILLED")
    assert len(ended) == 2


def test_results_are_given_up_to_a_budget(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "BUDGET", 1000)
    ids = world.create(*[world.spec()] * 4)
    session = world.open()
    for job, size in zip(world.acquire(session), (2000, 600, 600, 0), strict=True):
        world.run(session, job, result=Result(ok=True, value=b"x" * size))
    cursor, pages = 0, []
    while True:
        page = world.feed(cursor, include_results=True, to_state=["JOB_FINISHED"])
        if not page["events"]:
            break
        cursor = int(page["cursor"])
        pages.append([event["subject_id"] for event in page["events"]])
    assert pages == [ids[:1], ids[1:2], ids[2:]]
    assert set(world.read(feed.results, world.owner, ids)) == {ids[0]}


class Campaign:
    """A site and an app of a live service, and what threads do with them."""

    def __init__(self, http: Http) -> None:
        self.http = http
        self.site = http.ok("POST", "/sites", {"name": f"site {time.monotonic_ns()}"})["id"]
        app = {"site_id": self.site, "name": "A", "hooks": ["run"], "payload": "AAAA"}
        self.app = http.ok("POST", "/apps", app)["id"]

    def create(self, count: int) -> list[int]:
        specs = [{"app_id": self.app, "workdir": "w"}] * count
        return [job["id"] for job in self.http.ok("POST", "/jobs", specs)]

    def cursor(self) -> str:
        found: str = self.http.ok("GET", "/events/feed")["cursor"]
        return found


def follow(http: Http, cursor: str, wanted: int, **query: Any) -> Iterator[list[dict[str, Any]]]:
    """Batches of the feed until `wanted` events were told, or the deadline."""
    deadline = time.monotonic() + DEADLINE
    told = 0
    while told < wanted:
        assert time.monotonic() < deadline, f"{told} of {wanted} events were told"
        answer = http.ok("GET", "/events/feed", query={"cursor": cursor, "timeout": 5, **query})
        cursor = answer["cursor"]
        told += len(answer["events"])
        yield answer["events"]


def in_threads(*work: Callable[[], None]) -> None:
    problems: list[BaseException] = []

    def guarded(some: Callable[[], None]) -> None:
        try:
            some()
        except BaseException as error:  # noqa: BLE001 - raised below, in the test's own thread
            problems.append(error)

    threads = [threading.Thread(target=guarded, args=(some,)) for some in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert not problems, problems
    assert not any(thread.is_alive() for thread in threads)


@pytest.fixture
def processes(live: LiveService, start_service: Callable[[str], LiveService]) -> list[Http]:
    """Clients of all server processes of one database: two on PostgreSQL, one on SQLite."""
    clients = [Http(live)]
    if live.database.startswith("postgresql"):
        clients.append(Http(start_service(live.database), token=live.token))
    return clients


def test_concurrent_writers_skip_nothing_and_repeat_nothing(processes: list[Http]) -> None:
    """Several processes write batches of all sizes; readers at each of them are told everything once, in one order."""
    campaign = Campaign(processes[0])
    cursor = campaign.cursor()
    created: list[int] = []
    told: list[list[int]] = [[] for _ in range(2)]
    sizes = [1, 300, 2, 40, 1, 1, 100, 5]

    def write(http: Http) -> None:
        mine = Campaign.__new__(Campaign)
        mine.http, mine.app = http, campaign.app
        for size in sizes:
            created.extend(mine.create(size))

    writers = [processes[i % len(processes)] for i in range(3)]
    total = len(writers) * sum(sizes)

    def read(index: int) -> None:
        for batch in follow(processes[index % len(processes)], cursor, total, site_id=campaign.site, kind="job"):
            told[index] += [event["subject_id"] for event in batch]

    in_threads(*(lambda http=http: write(http) for http in writers), lambda: read(0), lambda: read(1))
    assert told[0] == told[1]
    assert sorted(told[0]) == sorted(created)


def test_whoever_waits_is_woken_by_any_process(processes: list[Http]) -> None:
    """A long poll at one process ends when another one writes, long before its timeout."""
    campaign = Campaign(processes[-1])
    waited: list[float] = []

    def wait_for_event(http: Http, cursor: str) -> None:
        start = time.monotonic()
        answer = http.ok("GET", "/events/feed", query={"cursor": cursor, "timeout": 30})
        assert answer["events"]
        waited.append(time.monotonic() - start)

    session = campaign.http.ok("POST", "/sessions", {"site_id": campaign.site})["id"]

    def wait_for_job(http: Http) -> None:
        start = time.monotonic()
        wanted = {"max_jobs": 1, "max_nodes": 1, "timeout": 30}
        assert http.ok("POST", f"/sessions/{session}/acquire", wanted)["jobs"]
        waited.append(time.monotonic() - start)

    cursor = campaign.cursor()

    def write() -> None:
        time.sleep(0.5)  # only so that the others are waiting already; right in any case
        campaign.create(1)

    first = processes[0]
    in_threads(lambda: wait_for_event(first, cursor), lambda: wait_for_job(first), write)
    assert len(waited) == 2
    assert max(waited) < 15


def test_a_token_revoked_at_one_process_is_refused_by_all(processes: list[Http]) -> None:
    made = processes[0].ok("POST", "/auth/tokens", {"name": "short"})
    users = [Http(http._live, token=made["token"]) for http in processes]
    for user in users:
        user.ok("GET", "/auth/me")
    processes[0].ok("DELETE", f"/auth/tokens/{made['id']}")
    assert users[0]("GET", "/auth/me").status == 401
    deadline = time.monotonic() + 10
    while users[-1]("GET", "/auth/me").status != 401:
        assert time.monotonic() < deadline


def test_lost_connections_to_the_database_are_made_again(
    start_service: Callable[[str], LiveService], postgres_url: str
) -> None:
    """As when PostgreSQL restarts: for a moment a 503, then all is well, notifications included."""
    first, second = start_service(postgres_url), start_service(postgres_url)
    http, other = Http(first), Http(second, token=first.token)
    campaign = Campaign(http)
    engine = create_engine(postgres_url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        everyone_else = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
        connection.execute(text(everyone_else + "AND pid <> pg_backend_pid()"))
    engine.dispose()
    deadline = time.monotonic() + DEADLINE
    for client in (http, other):
        while (answer := client("GET", "/jobs")).status != 200:
            assert (answer.status, answer.json["error"]) == (503, "service_unavailable")
            assert time.monotonic() < deadline
    while "not hearing" not in second.log:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    cursor = campaign.cursor()
    told: list[Any] = []
    campaign.create(1)
    for batch in follow(other, cursor, 1, kind="job"):
        told += batch
    assert len(told) == 1


def test_a_long_poll_ends_with_nothing_after_its_timeout(processes: list[Http]) -> None:
    campaign = Campaign(processes[0])
    start = time.monotonic()
    query = {"cursor": campaign.cursor(), "timeout": 0.3, "subject_id": 1, "kind": "batch_job"}
    assert processes[0].ok("GET", "/events/feed", query=query)["events"] == []
    assert 0.25 < time.monotonic() - start < 10


def test_a_cursor_that_knows_of_nothing_new_waits_for_it(processes: list[Http]) -> None:
    """Its place holds at every process of the service, and at one that was restarted."""
    campaign = Campaign(processes[0])
    for http in (processes[0], processes[-1]):
        cursor = http.ok("GET", "/events/feed", query={"cursor": campaign.cursor(), "timeout": 0.1})["cursor"]
        assert re.fullmatch(r"\d+-\w{8}-\d+", cursor)
        assert http.ok("GET", "/events/feed", query={"cursor": cursor, "timeout": 0.1})["events"] == []
        campaign.create(1)
        for place in (cursor, cursor.partition("-")[0], f"{cursor.partition('-')[0]}-00000000-999999"):
            for other in processes:
                query = {"cursor": place, "timeout": 30, "kind": "job"}
                assert len(other.ok("GET", "/events/feed", query=query)["events"]) == 1


def test_a_session_lives_while_its_long_poll_waits(processes: list[Http]) -> None:
    campaign = Campaign(processes[0])
    http = processes[0]
    session = http.ok("POST", "/sessions", {"site_id": campaign.site, "ttl_sec": 1})["id"]
    wanted = {"max_jobs": 1, "max_nodes": 1, "timeout": 3}
    assert http.ok("POST", f"/sessions/{session}/acquire", wanted) == {"jobs": []}
    http.ok("PUT", f"/sessions/{session}")


def test_an_acquire_that_would_find_nothing_waits_for_work(processes: list[Http]) -> None:
    campaign = Campaign(processes[0])
    session = processes[0].ok("POST", "/sessions", {"site_id": campaign.site})["id"]
    keys = iter(range(1000))

    def acquire(http: Http, key: int, timeout: float = 30, **wanted: Any) -> list[int]:
        body = {"max_jobs": 2, "max_nodes": 4, "timeout": timeout, **wanted}
        headers = {"Idempotency-Key": str(key)}
        found = http.ok("POST", f"/sessions/{session}/acquire", body, headers=headers)
        return [job["id"] for job in found["jobs"]]

    for http in (processes[0], processes[-1]):
        assert acquire(http, next(keys), timeout=0.1) == []
        started = threading.Event()
        found: list[int] = []

        def wait(http: Http = http, started: threading.Event = started, found: list[int] = found) -> None:
            started.set()
            found += acquire(http, 1000)

        created: list[int] = []

        def work(started: threading.Event = started, created: list[int] = created) -> None:
            assert started.wait(DEADLINE)
            created += campaign.create(1)

        in_threads(wait, work)
        assert found == created
        assert acquire(http, 1000) == created  # its answer might have been lost
        assert acquire(http, next(keys), timeout=0.1) == []
        # Another demand is another question.
        spec = {"app_id": campaign.app, "workdir": "w", "num_nodes": 8}
        large = processes[0].ok("POST", "/jobs", [spec])[0]["id"]
        assert acquire(http, next(keys), timeout=0.1) == []
        assert acquire(http, next(keys), max_nodes=8) == [large]


def test_a_report_has_the_acquire_that_waits_answered(processes: list[Http]) -> None:
    """By any process; a report that does not say so leaves it waiting."""
    campaign = Campaign(processes[0])
    session = processes[0].ok("POST", "/sessions", {"site_id": campaign.site})["id"]
    waited: list[float] = []
    answered = threading.Event()

    def acquire() -> None:
        start = time.monotonic()
        wanted = {"max_jobs": 1, "max_nodes": 1, "timeout": 30}
        assert processes[0].ok("POST", f"/sessions/{session}/acquire", wanted) == {"jobs": []}
        waited.append(time.monotonic() - start)
        answered.set()

    def report() -> None:
        path = f"/sessions/{session}/report"
        processes[-1].ok("POST", path, {"reports": []})
        assert not answered.wait(0.5)
        while not answered.wait(0.1):  # the first may come before the acquire waits
            processes[-1].ok("POST", path, {"reports": [], "widen": True})

    in_threads(acquire, report)
    assert waited[0] < 20
