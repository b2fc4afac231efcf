"""Work that is made is given in the same transaction to the acquire that waits for it; in one process, turn by turn."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import Request
from sqlalchemy import Connection

from balsam_exec.model.jobs import JobSpec
from balsam_exec.model.sessions import AcquireRequest
from balsam_exec.server.routes import events, sessions
from balsam_exec.server.service import create, leases
from balsam_exec.server.service.handover import Place
from balsam_exec.server.service.leases import Drained
from balsam_exec.server.service.unit import Unit, work_at
from tests.server.world import S, World

DEADLINE = 20.0


@pytest.fixture
def world(sqlite_url: str) -> Iterator[World]:
    with closing(World(sqlite_url)) as world:
        yield world
        world.check_invariants()


class _Asked(Request):
    """A request as a lane hands it on."""

    def __init__(self, app: Any, wanted: AcquireRequest | None = None, *, query: bytes = b"") -> None:
        scope = {"type": "http", "method": "POST", "path": "/", "query_string": query, "headers": [], "app": app}
        super().__init__(scope, self._body_once)
        self._whole = wanted.model_dump_json(exclude_defaults=True).encode() if wanted else b""

    async def _body_once(self) -> dict[str, Any]:
        return {"type": "http.request", "body": self._whole}

    async def is_disconnected(self) -> bool:
        return False


class Service:
    """The event loop of a service."""

    def __init__(self, world: World) -> None:
        self.world, self.hub = world, world.runtime.hub
        state = SimpleNamespace(
            runtime=world.runtime, drained=Drained(self.hub), settings=SimpleNamespace(max_body=10**6)
        )
        self.app = SimpleNamespace(state=state)
        self.commits = 0
        self._transaction = world.database.transaction
        world.database.transaction = self._counted  # type: ignore[method-assign]
        self.hub.start()

    def _counted(self, work: Callable[[Connection], Any]) -> Any:
        result = self._transaction(work)
        self.commits += 1
        return result

    def place(self, session: int, key: str | None = None, **wanted: Any) -> Place:
        """Somebody who waits, as an acquire does."""
        request = AcquireRequest(**{"max_jobs": 9, "max_nodes": 1, **wanted})
        place = self.world.runtime.handover.place(
            lambda unit: leases.acquire(unit, self.world.owner, session, request, key)
        )
        place.wait_for(work_at(self.world.site))
        return place

    def stand(self, session: int, key: str | None = "key", **wanted: Any) -> AsyncIterator[Any]:
        """The answers of a standing acquire."""
        request = AcquireRequest(**{"max_jobs": 9, "max_nodes": 1, "timeout": 60.0, **wanted})
        return sessions.keep_acquiring(_Asked(self.app, request), session, self.world.owner, key)

    def acquire(self, session: int, key: str | None = None, **wanted: Any) -> Awaitable[Any]:
        request = AcquireRequest(**{"max_jobs": 9, "max_nodes": 1, "timeout": 60.0, **wanted})
        return sessions.acquire(_Asked(self.app, request), session, self.world.owner, key)

    def follow(self, query: bytes) -> AsyncIterator[Any]:
        """The answers of the feed to who follows it."""
        return events.follow_feed(_Asked(self.app, query=query), self.world.owner)

    async def write(self, use_case: Any, *arguments: Any) -> Any:
        return await self.world.runtime.write_brief(use_case, *arguments)

    async def create(self, *specs: JobSpec) -> list[int]:
        body = await self.write(create.create_jobs, self.world.owner, specs or [self.world.spec()], None, b"")
        return [job["id"] for job in json.loads(body)]


def served(test: Callable[[Service], Awaitable[None]]) -> Callable[[World], None]:
    """A test in the event loop of a service."""

    def run(world: World) -> None:
        async def within() -> None:
            service = Service(world)
            await service.write(lambda _: None)  # from now on this is the thread of what is brief
            async with asyncio.timeout(DEADLINE):
                await test(service)

        asyncio.run(within())

    run.__name__ = test.__name__
    return run


@asynccontextmanager
async def waiting(call: Awaitable[Any], service: Service) -> AsyncIterator[asyncio.Task[Any]]:
    """The call, when it has found nothing and waits."""
    task = asyncio.ensure_future(call)
    while not service.hub._waiting and not task.done():
        await asyncio.sleep(0)
    assert not task.done()
    yield task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def jobs_of(answer: Any) -> list[int]:
    return [job["id"] for job in json.loads(answer.body)["jobs"]] if answer.body else []


def given(place: Place) -> list[int]:
    return [] if place.given is None else [job["id"] for job in place.given.lease.jobs]


@served
async def test_what_is_created_is_leased_in_the_same_transaction(service: Service) -> None:
    session = service.world.open()
    place = service.place(session)
    before = service.commits
    ids = await service.create()
    assert given(place) == ids
    assert service.commits == before + 1
    assert service.world.held() == dict.fromkeys(ids, False)
    place.leave()


@served
async def test_so_are_a_child_whose_parent_is_done_and_a_job_that_is_restarted(service: Service) -> None:
    world = service.world
    [parent] = await service.create()
    [child] = await service.create(world.spec(parent_ids=[parent]))
    mine, its = world.open(), world.open()
    [job] = world.acquire(mine)
    place = service.place(its)
    reports = [world.a_report(job, S.RUNNING), world.a_report(job, S.RUN_DONE)]
    await service.write(leases.report, world.owner, mine, reports)
    assert given(place) == [child]
    place.leave()

    [again] = await service.create()
    [job] = world.acquire(mine)
    await service.write(leases.report, world.owner, mine, [world.a_report(job, S.RUNNING)])
    place = service.place(its)
    await service.write(leases.report, world.owner, mine, [world.a_report(job, S.RUN_TIMEOUT)])
    assert place.given is not None
    assert [(job["id"], job["restarted"]) for job in place.given.lease.jobs] == [(again, True)]
    assert set(world.held()) == {child, again}
    place.leave()


@served
async def test_an_acquire_that_waits_costs_no_transaction_of_its_own(service: Service) -> None:
    session = service.world.open()
    async with waiting(service.acquire(session), service) as task:
        before = service.commits
        ids = await service.create()
        assert jobs_of(await task) == ids
        assert service.commits == before + 1


@served
async def test_what_is_undone_was_not_given(service: Service) -> None:
    place = service.place(service.world.open())

    def fail(unit: Unit) -> None:
        create.create_jobs(unit, service.world.owner, [service.world.spec()], None, b"")
        unit.flush = lambda: 1 / 0  # type: ignore[method-assign,assignment]

    with pytest.raises(ZeroDivisionError):
        await service.write(fail)
    assert place.given is None
    assert service.world.held() == {}
    place.leave()


@served
async def test_a_session_that_is_over_is_no_harm_to_who_creates(service: Service) -> None:
    session = service.world.open()
    place = service.place(session)
    service.world.close_session(session)
    [job] = await service.create()
    assert place.given is None
    assert service.world.state(job) == S.PREPROCESSED
    place.leave()


@served
async def test_the_first_gets_it_and_who_has_left_nothing(service: Service) -> None:
    gone, first, second = (service.place(service.world.open()) for _ in range(3))
    gone.leave()
    ids = await service.create()
    assert (given(gone), given(first), given(second)) == ([], ids, [])
    more = await service.create()  # the first has not fetched what it got
    assert (given(first), given(second)) == (ids, more)
    first.leave()
    second.leave()
    assert not service.world.runtime.handover._queues


@pytest.mark.parametrize(
    "wanted", [{"filter_tags": {"by": "me"}}, {"max_nodes": 1, "max_wall_time_min": 4}, {"min_packing_count": 2}]
)
def test_what_does_not_fit_is_not_given(world: World, wanted: dict[str, Any]) -> None:
    @served
    async def test(service: Service) -> None:
        place = service.place(service.world.open(), **wanted)
        await service.create(service.world.spec(wall_time_min=5, tags={"by": "you"}))
        assert place.given is None
        assert service.world.held() == {}
        fits = await service.create(service.world.spec(wall_time_min=4, tags={"by": "me"}, node_packing_count=2))
        assert given(place) == fits
        place.leave()

    test(world)


@served
async def test_what_is_written_in_another_thread_is_found_by_who_is_woken(service: Service) -> None:
    session = service.world.open()
    async with waiting(service.acquire(session), service) as task:
        body = await service.world.runtime.write(
            create.create_jobs, service.world.owner, [service.world.spec()], None, b""
        )
        assert jobs_of(await task) == [job["id"] for job in json.loads(body)]


@served
async def test_what_comes_between_the_gift_and_its_fetch_is_not_forgotten(service: Service) -> None:
    session = service.world.open()
    async with waiting(service.acquire(session, "a"), service) as task:
        first = await service.create()
        second = await service.create()
        assert jobs_of(await task) == first
    assert jobs_of(await service.acquire(session, "b")) == second


@served
async def test_an_acquire_that_stands_goes_on_to_it(service: Service) -> None:
    answers = service.stand(service.world.open())
    async with waiting(anext(answers), service) as task:
        first = await service.create()
        second = await service.create()
        assert jobs_of(await task) == first
    assert jobs_of(await anext(answers)) == second
    await answers.aclose()  # type: ignore[attr-defined]


@served
async def test_after_a_gift_it_is_known_that_there_is_nothing_more(service: Service) -> None:
    answers = service.stand(service.world.open())
    async with waiting(anext(answers), service) as task:
        await service.create()
        await task
    before = service.commits
    async with waiting(anext(answers), service) as task:
        ids = await service.create()
        assert jobs_of(await task) == ids
        assert service.commits == before + 1  # to look for more would be one, too


@pytest.mark.parametrize("how", ["the time is over", "the service ends"])
def test_a_gift_at_the_last_moment_is_not_lost(world: World, how: str) -> None:
    @served
    async def test(service: Service) -> None:
        async with waiting(service.acquire(service.world.open(), timeout=0.05), service) as task:
            if how == "the time is over":
                time.sleep(0.06)  # nothing else has its turn meanwhile
            ids = await service.create()
            if how == "the service ends":
                service.hub.close()
            assert jobs_of(await task) == ids
            assert set(world.held()) == set(ids)

    test(world)


@served
async def test_what_a_standing_acquire_holds_is_what_it_has_told(service: Service) -> None:
    """Though a gift comes while it takes something itself in the writer's thread."""
    session, told = service.world.open(), set()
    runtime = service.world.runtime
    answers = service.stand(session)
    async with waiting(anext(answers), service) as task:
        await service.create()
        told.update(jobs_of(await task))
    write, gifts = runtime.write_brief, []

    async def slow(use_case: Any, *arguments: Any, **options: Any) -> Any:
        runtime.write_brief = write  # type: ignore[method-assign]
        lease = await runtime.write(use_case, *arguments, **options)
        gifts.extend(await service.create())  # before the acquire has its turn again
        return lease

    async with waiting(anext(answers), service) as task:
        runtime.write_brief = slow  # type: ignore[method-assign,assignment]
        await runtime.write(create.create_jobs, service.world.owner, [service.world.spec()], None, b"")
        told.update(jobs_of(await task))
    assert len(gifts) == 1
    async with waiting(_the_rest(answers, told), service):
        assert told == set(service.world.held())


async def _the_rest(answers: AsyncIterator[Any], told: set[int]) -> None:
    async for answer in answers:
        told.update(jobs_of(answer))


@served
async def test_what_it_gives_leaves_a_standing_acquire_no_more_time(service: Service) -> None:
    answers = service.stand(service.world.open(), timeout=0.05)
    await service.create()
    assert (await anext(answers)).status_code == 200
    time.sleep(0.06)
    last = asyncio.ensure_future(anext(answers))
    for _ in range(20):
        await asyncio.sleep(0)
    assert last.done()
    assert last.result().status_code == 204


@served
async def test_a_standing_acquire_ends_when_the_service_does(service: Service) -> None:
    answers = service.stand(service.world.open())
    async with waiting(anext(answers), service) as task:
        service.hub.close()
        assert (await task).status_code == 204


@pytest.mark.parametrize("query", [b"kind=job", b"kind=job&timeout=0&cursor=%d"])
def test_who_follows_the_feed_looks_when_he_is_woken_and_hears_the_end(world: World, query: bytes) -> None:
    @served
    async def test(service: Service) -> None:
        looks, read = [], world.runtime.read_brief

        async def counted(*arguments: Any) -> Any:
            looks.append(await read(*arguments))
            return looks[-1]

        world.runtime.read_brief = counted  # type: ignore[method-assign,assignment]
        cursor = world.feed(None)["cursor"].encode()
        answers = service.follow(query.replace(b"%d", cursor))
        for told in (1, 2):
            async with waiting(anext(answers), service) as task:
                for _ in range(20):
                    await asyncio.sleep(0)
                assert len(looks) <= 2 * told  # one that finds it, one that finds nothing more
                created = await service.create()
                assert [event["subject_id"] for event in json.loads((await task).body)["events"]] == created
        async with waiting(anext(answers), service) as task:
            service.hub.close()
            assert (await task).status_code == 204

    test(world)
