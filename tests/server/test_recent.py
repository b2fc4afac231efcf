"""What is told of the feed from memory is what the database tells."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import func, select

from balsam_exec.model.errors import Conflict, IllegalTransition
from balsam_exec.model.events import Kind
from balsam_exec.model.hooks import HookReport, Visit
from balsam_exec.model.jobs import JobPatch, Result
from balsam_exec.model.queries import FeedQuery
from balsam_exec.model.states import TERMINAL
from balsam_exec.server.hub import Hub
from balsam_exec.server.service import create, feed, hooks, recent, update
from balsam_exec.server.service.recent import Recent
from balsam_exec.server.service.runtime import Runtime
from balsam_exec.server.service.unit import Unit
from balsam_exec.server.store.database import Database
from balsam_exec.server.store.schema import events as event_table
from tests.server.machines import TIMEOUT, run_machine
from tests.server.world import S, World

DEADLINE = 30
PINK, BLUE = {"colour": "pink", "size": "1"}, {"colour": "blue"}


class Memory:
    """A world on SQLite whose thread is that of the event loop, and questions to both that know its feed."""

    def __init__(self, world: World) -> None:
        self.world = world
        world.runtime.recent = Recent()
        self.here()

    def here(self) -> None:
        self.world.database._loop_thread = threading.get_ident()

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """What is written is as if by another thread."""
        self.world.database._loop_thread = 0
        try:
            yield
        finally:
            self.here()

    def head(self) -> int:
        """The id of the last event of all."""
        with self.world.database.reading() as connection:
            return connection.execute(select(func.max(event_table.c.id))).scalar() or 0

    def told(self, after: int, **query: Any) -> list[dict[str, Any]] | None:
        """What is told from memory, once it is compared."""
        owner, asked, read = self.world.owner, FeedQuery(**query), self.world.read
        told = self.world.runtime.recent.told(owner, after, asked)
        if told is None:
            return None
        known = read(feed.read_feed, owner, after, asked)
        assert [self._lasting(event) for event in told.events] == [self._lasting(event) for event in known.events]
        assert told.complete
        assert after <= told.event_id <= max(after, self.head())
        assert read(feed.read_feed, owner, told.event_id, asked).events == []
        return told.events

    def _lasting(self, event: dict[str, Any]) -> dict[str, Any]:
        """But for the result of a job that went on: memory has what was true then."""
        if event["kind"] != Kind.JOB or "result" not in event:
            return event
        later = self.world.feed(event["id"], kind=["job"], subject_id=[event["subject_id"]])["events"]
        return {**event, "result": ...} if later else event


@pytest.fixture
def memory(sqlite_url: str) -> Iterator[Memory]:
    with closing(World(sqlite_url)) as world:
        memory = Memory(world)
        yield memory
        world.check_invariants()


def ids(events: list[dict[str, Any]] | None) -> list[int]:
    """Whose events these are, each once."""
    assert events is not None
    return list(dict.fromkeys(event["subject_id"] for event in events))


def test_creation_and_end_are_told_from_memory(memory: Memory) -> None:
    world = memory.world
    session = world.open()
    before = memory.head()
    one, two = world.create(world.spec(tags=PINK, data={"a": [1, "é"]}), world.spec(tags=BLUE))
    after_creation = memory.head()
    assert ids(memory.told(before)) == ids(memory.told(before, kind=["job"])) == [one, two]
    for job in world.acquire(session):
        result = Result(ok=False, exception=b"why", error="failed", reason="exit", return_code=3)
        failed = {"result": result, "data": {"why": "é", "code": 3}} if job["id"] == two else {}
        world.run(session, job, S.RUN_ERROR if failed else S.RUN_DONE, **failed)
    ended = memory.told(after_creation, to_state=sorted(TERMINAL), include_results=True)
    assert ended is not None
    assert [(event["subject_id"], event["result"]["return_code"]) for event in ended] == [(one, 0), (two, 3)]
    assert ids(memory.told(before, subject_id=[two])) == [two]
    assert ids(memory.told(before, tags=["colour:pink", "size:1"])) == [one]
    assert ids(memory.told(before, tags=["colour:blue"])) == [two]
    assert memory.told(before, tags=["colour:blue", "size:1"]) == []
    assert memory.told(before, site_id=[world.site + 1]) == memory.told(before, kind=["batch_job"]) == []
    assert memory.told(memory.head()) == []


def test_what_it_cannot_know_is_left_to_the_database(memory: Memory) -> None:
    world, head = memory.world, memory.head()
    assert memory.told(head) is None  # nothing was written yet
    [job] = world.create()
    assert memory.told(head - 1) is None
    assert memory.told(memory.head() + 1) is None
    assert ids(memory.told(head, limit=1)) == [job]
    world.create()
    assert memory.told(head, limit=1) is None
    before = memory.head()
    world.kill(job)
    assert ids(memory.told(before)) == [job]
    assert memory.told(before, include_results=True) is None  # it left none


def test_a_result_that_came_before_the_end_is_left_to_the_database(memory: Memory) -> None:
    world = memory.world
    session = world.open()
    job = world.create(world.spec(world.hooked))[0]
    world.patch(job, state=S.STAGED_IN)
    world.patch(job, state=S.PREPROCESSED)
    [leased] = world.acquire(session)
    world.run(session, leased)
    before = memory.head()
    world.patch(job, state=S.POSTPROCESSED)
    assert ids(memory.told(before, to_state=["JOB_FINISHED"])) == [job]
    assert memory.told(before, to_state=["JOB_FINISHED"], include_results=True) is None
    assert ids(memory.told(before, to_state=["POSTPROCESSED"], include_results=True)) == [job]


def test_what_another_thread_writes_is_left_to_the_database(memory: Memory) -> None:
    world, first = memory.world, memory.head()
    world.create()
    with memory.elsewhere():
        second = memory.head()
        [job] = world.create(world.spec(tags=PINK))
    third = memory.head()
    assert [memory.told(cursor) for cursor in (first, second, third)] == [None] * 3
    world.cancel(job)
    assert [memory.told(cursor) for cursor in (first, second)] == [None] * 2
    assert ids(memory.told(third, tags=["colour:pink"])) == [job]


def test_threads_of_the_service_are_told_apart(memory: Memory) -> None:
    world, runtime = memory.world, memory.world.runtime
    memory.world.database._loop_thread = 0
    request: Any = (create.create_jobs, world.owner, [world.spec()])

    async def run() -> None:
        begin = memory.head()
        await runtime.write_brief(*request)
        assert len(ids(memory.told(begin))) == 1
        await runtime.write(*request)
        assert memory.told(begin) is None
        begin = memory.head()
        assert memory.told(begin) is None
        await runtime.write_brief(*request)
        assert len(ids(memory.told(begin))) == 1

    asyncio.run(asyncio.wait_for(run(), DEADLINE))


def test_what_somebody_else_writes_leaves_a_gap(memory: Memory) -> None:
    world, begin = memory.world, memory.head()
    world.create()
    with closing(Database(world.database.url)) as database:
        Runtime(database, Hub()).write_now(create.create_jobs, world.owner, [world.spec()])
    gap = memory.head()
    [job] = world.create()
    assert memory.told(begin) is None
    assert ids(memory.told(gap)) == [job]


def test_a_transaction_that_fails_leaves_nothing(memory: Memory) -> None:
    world, begin = memory.world, memory.head()
    first, second = world.create(world.spec(tags=PINK)), []

    def fail(unit: Unit) -> None:
        update.patch_job(unit, world.owner, first[0], JobPatch(tags=BLUE))
        second.append(create.create_jobs(unit, world.owner, [world.spec()]))
        unit.flush()
        raise Conflict("no")

    with pytest.raises(Conflict):
        world.write(fail)
    assert second
    assert ids(memory.told(begin)) == first
    assert ids(memory.told(begin, tags=["colour:pink"])) == first
    third = world.create()
    assert ids(memory.told(begin)) == first + third


@pytest.mark.parametrize("inline", [True, False])
def test_tags_are_those_of_now(memory: Memory, inline: bool) -> None:
    world, begin = memory.world, memory.head()
    one, two = world.create(world.spec(tags=PINK), world.spec(tags=PINK))
    if inline:
        world.patch(one, tags=BLUE)
        assert ids(memory.told(begin, tags=["colour:pink"])) == [two]
    else:
        with memory.elsewhere():
            world.patch(one, tags=BLUE)
        begin = memory.head()
    world.cancel(one, two)
    assert ids(memory.told(begin, tags=["colour:pink"])) == [two]
    assert ids(memory.told(begin, tags=["colour:blue"])) == [one]


def test_who_is_deleted_has_no_tags(memory: Memory) -> None:
    world, begin = memory.world, memory.head()
    [job] = world.create(world.spec(tags=PINK))
    world.write(update.delete_job, world.owner, job)
    assert [event["to_state"] for event in memory.told(begin) or ()] == ["PREPROCESSED", "deleted"]
    assert memory.told(begin, tags=["colour:pink"]) is None
    assert memory.told(begin, tags=["colour:pink"], to_state=["RUNNING"]) == []


def test_owners_are_told_their_own(memory: Memory) -> None:
    world, begin = memory.world, memory.head()
    ann, site, app = world.owner, world.site, world.python
    world.settle_in_as("bob")
    bob = world.owner
    theirs: dict[int, list[int]] = {ann: [], bob: []}
    for _ in range(3):
        world.owner = ann
        theirs[ann] += world.create(world.spec(app, tags=PINK))
        world.owner = bob
        theirs[bob] += world.create(world.spec(tags=PINK))
    for world.owner, created in theirs.items():
        assert ids(memory.told(begin, kind=["job"])) == created
        assert ids(memory.told(begin, kind=["job"], tags=["colour:pink"])) == created
    assert memory.told(begin, kind=["job"], site_id=[site]) == []


# --- how much is kept


def test_the_last_transactions_are_kept(memory: Memory) -> None:
    world = memory.world
    begins = []
    for _ in range(recent._TRANSACTIONS + 1):
        begins.append(memory.head())
        world.create()
    assert memory.told(begins[0]) is None
    assert len(ids(memory.told(begins[1]))) == recent._TRANSACTIONS


def test_the_tags_of_the_last_jobs_are_kept(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "_JOBS", 2)
    world, begin = memory.world, memory.head()
    one, two = world.create(*[world.spec(tags=PINK)] * 2)
    world.patch(one, tags=BLUE)
    [three] = world.create(world.spec(tags=PINK))
    asked = {job: memory.told(begin, subject_id=[job], tags=["colour:pink"]) for job in (one, two, three)}
    assert (asked[one], asked[two]) == ([], None)
    assert ids(asked[three]) == [three]


@pytest.mark.parametrize(("bound", "value"), [("_EVENTS", 2), ("_BYTES", 20)])
def test_what_is_too_much_is_left_to_the_database(
    memory: Memory, monkeypatch: pytest.MonkeyPatch, bound: str, value: int
) -> None:
    monkeypatch.setattr(recent, bound, value)
    world = memory.world
    session = world.open()
    world.create()
    [leased] = world.acquire(session)
    begin = memory.head()
    world.run(session, leased, result=Result(ok=True, value=b"v" * 30))
    assert memory.told(begin) is None
    begin = memory.head()
    assert memory.told(begin) is None
    [job] = world.create()
    assert ids(memory.told(begin)) == [job]


def test_jobs_of_very_many_tags_are_left_to_the_database(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "_TAGS", 1)
    world = memory.world
    world.create()
    begin = memory.head()
    world.create(world.spec(tags={"k": "a", "x": "y"}))
    assert memory.told(begin, tags=["k:a"]) is None
    assert memory.told(begin) is not None


# --- anything


#: Of every kind of question some, and some of several.
QUERIES: list[dict[str, Any]] = [
    {},
    {"kind": ["job"], "include_results": True},
    {"to_state": sorted(TERMINAL), "include_results": True},
    {"kind": ["job"], "to_state": ["RUNNING", "deleted"]},
    {"tags": ["colour:pink"]},
    {"tags": ["colour:pink", "size:1"], "include_results": True},
    {"tags": ["colour:blue"], "to_state": sorted(TERMINAL), "include_results": True},
    {"kind": ["batch_job"]},
    {"limit": 1},
    {"limit": 3, "include_results": True},
    {"limit": 2, "tags": ["colour:blue"]},
]


class Followed(RuleBasedStateMachine):
    """Two users and their launchers, and in between writes of another thread."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.world.empty()
        self.memory = Memory(self.world)
        self.queries = itertools.cycle(QUERIES)
        self.users: list[dict[str, int]] = []
        self.jobs: list[tuple[int, int]] = []  # of which user

    @initialize()
    def begin(self) -> None:
        for name in ("bob", "cleo"):
            self.world.settle_in_as(name)
            places = {name: getattr(self.world, name) for name in ("owner", "site", "python", "hooked")}
            self.users.append({**places, "session": self.world.open(ttl_sec=3600)})
            self.create(len(self.users) - 1, 2, [], PINK, False, True)

    @contextmanager
    def act(self, user: int, inline: bool = True) -> Iterator[dict[str, int]]:
        """As that user; what is refused is so."""
        for name in ("owner", "site", "python", "hooked"):
            setattr(self.world, name, self.users[user][name])
        with suppress(Conflict, IllegalTransition):
            if inline:
                yield self.users[user]
            else:
                with self.memory.elsewhere():
                    yield self.users[user]

    where = st.sampled_from([True, True, True, True, True, False])
    tags = st.sampled_from([{}, PINK, BLUE])
    index = st.integers(0, 50)

    def pick(self, index: int) -> tuple[int, int]:
        return self.jobs[-1 - index % len(self.jobs)]

    @rule(
        user=st.integers(0, 1),
        count=st.integers(1, 3),
        parents=st.lists(index, max_size=2),
        tags=tags,
        hooked=st.booleans(),
        inline=where,
    )
    def create(
        self, user: int, count: int, parents: list[int], tags: dict[str, str], hooked: bool, inline: bool
    ) -> None:
        with self.act(user, inline) as here:
            own = [job for whose, job in self.jobs if whose == user and self.world.count(id=[job])]
            above = [own[index % len(own)] for index in parents if own]
            spec = self.world.spec(here["hooked" if hooked else "python"], tags=tags, parent_ids=above)
            self.jobs += [(user, job) for job in self.world.create(*[spec] * count)]

    @precondition(lambda self: self.jobs)
    @rule(index=index, tags=tags, inline=where)
    def tag(self, index: int, tags: dict[str, str], inline: bool) -> None:
        user, job = self.pick(index)
        with self.act(user, inline):
            self.world.patch(job, tags=tags)

    @precondition(lambda self: self.jobs)
    @rule(index=index, inline=where)
    def delete(self, index: int, inline: bool) -> None:
        user, job = self.pick(index)
        with self.act(user, inline):
            self.world.write(update.delete_job, self.world.owner, job)
            self.jobs.remove((user, job))

    @rule(
        user=st.integers(0, 1),
        count=st.integers(1, 4),
        end=st.sampled_from(["done", "done", "error", "timeout", "none"]),
        inline=where,
    )
    def run_some(self, user: int, count: int, end: str, inline: bool) -> None:
        with self.act(user, inline) as here:
            for job in self.world.acquire(here["session"], count):
                state = {"error": S.RUN_ERROR, "timeout": S.RUN_TIMEOUT}.get(end, S.RUN_DONE)
                self.world.run(here["session"], job, state, **({"result": None} if end == "none" else {}))
                self.world.later(0.25)

    @precondition(lambda self: self.jobs)
    @rule(index=index, inline=where)
    def kill(self, index: int, inline: bool) -> None:
        user, job = self.pick(index)
        with self.act(user, inline):
            self.world.kill(job)

    @precondition(lambda self: self.jobs)
    @rule(
        index=index,
        inline=where,
        state=st.sampled_from([S.RESTART_READY, S.STAGED_IN, S.PREPROCESSED, S.POSTPROCESSED, S.FAILED]),
    )
    def move(self, index: int, inline: bool, state: S) -> None:
        """By its user or its site."""
        user, job = self.pick(index)
        with self.act(user, inline):
            self.world.patch(job, state=state, state_data={"by": "ü"})

    @precondition(lambda self: self.jobs)
    @rule(index=index, inline=where)
    def fail_by_a_hook(self, index: int, inline: bool) -> None:
        user, job = self.pick(index)
        with self.act(user, inline) as here:
            visit = Visit(job, self.world.epoch(job), S(self.world.state(job)))
            report = HookReport(visit=visit, patch=JobPatch(state=S.FAILED, state_data={"why": "hook"}))
            self.world.write(hooks.record, here["owner"], here["site"], [report])

    @precondition(lambda self: self.jobs)
    @rule(index=index)
    def fail_at_the_end(self, index: int) -> None:
        """Of a transaction that has done everything."""
        user, job = self.pick(index)

        def work(unit: Unit) -> None:
            update.kill_jobs(unit, self.world.owner, [job])
            update.patch_job(unit, self.world.owner, job, JobPatch(tags={"colour": "none"}))
            unit.flush()
            raise Conflict("no")

        with self.act(user):
            self.world.write(work)

    @invariant()
    def memory_tells_what_the_database_tells(self) -> None:
        head = self.memory.head()
        asked = list(itertools.islice(self.queries, 4))
        for user in range(len(self.users)):
            with self.act(user):
                sites = [{"site_id": [self.users[user]["site"]]}, {"subject_id": [job for _, job in self.jobs[-2:]]}]
                for query, after in itertools.product([*asked, *sites], range(max(0, head - 7), head + 2)):
                    self.memory.told(after, **query)


@pytest.mark.timeout(TIMEOUT)
def test_any_feed_is_told_as_the_database_tells_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "_JOBS", 5)
    monkeypatch.setattr(recent, "_TRANSACTIONS", 6)
    monkeypatch.setattr(recent, "_EVENTS", 8)
    monkeypatch.setattr(recent, "_BYTES", 60)
    run_machine(Followed, World(f"sqlite:///{tmp_path / 'balsam.db'}"), examples=10, steps=30)
