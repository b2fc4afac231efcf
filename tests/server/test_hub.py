"""What the hub remembers: whether something was published since."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from sqlalchemy import text

from balsam_exec.model.jobs import JobPatch
from balsam_exec.model.queries import FeedQuery
from balsam_exec.model.sessions import AcquireRequest
from balsam_exec.server import hub as hub_module
from balsam_exec.server.hub import Hub
from balsam_exec.server.service import leases, update
from balsam_exec.server.service.leases import Asked, Drained
from balsam_exec.server.service.unit import tag_marks, topics_of, work_at
from tests.server.world import S, World


def published(*batches: list[str]) -> Hub:
    hub = Hub()

    async def publish() -> None:
        hub.start()
        for batch in batches:
            hub.publish(batch)
        await asyncio.sleep(0)

    asyncio.run(publish())
    return hub


def test_quiet_is_what_was_not_published_since() -> None:
    hub = published(["a"], ["b"])
    assert hub.generation == 2
    assert not hub.quiet_since(0, ["a"])
    assert hub.quiet_since(1, ["a", "c"])
    assert not hub.quiet_since(1, ["a", "b"])
    assert hub.quiet_since(2, ["a", "b"])


def test_who_may_have_missed_something_is_not_told_that_all_is_quiet() -> None:
    hub = published(["a"])
    hub.publish_all()
    assert not hub.quiet_since(1, ["a"])
    assert not hub.quiet_since(1, ["never"])
    assert hub.quiet_since(2, ["a"])


def test_its_memory_is_bounded() -> None:
    hub = published(*([str(n)] for n in range(hub_module._REMEMBERED + 2)))
    assert not hub.quiet_since(1, ["x"])
    assert len(hub._published) < hub_module._REMEMBERED


def test_who_drained_a_site_need_not_look_again(world: World) -> None:
    hub = Hub()
    drained = Drained(hub)
    session, request = world.open(), AcquireRequest(max_jobs=3, max_nodes=1)
    lease = world.write(leases.acquire, world.owner, session, request, "a")
    drained.note(session, Asked.by(world.owner, request, "a"), hub.generation, lease)

    def known(owner: int = world.owner, key: str = "b", **changes: Any) -> bool:
        asked = Asked.by(owner, request.model_copy(update=changes), key)
        return drained.known(session, asked) is not None

    assert known()
    assert known(max_jobs=7, timeout=9.0)
    assert not known(owner=world.owner + 1)
    assert not known(max_nodes=2)
    assert not known(key="a")  # its answer was lost
    assert drained.known(session + 1, Asked.by(world.owner, request, "b")) is None

    async def publish() -> None:
        hub.start()
        hub.publish([work_at(world.site)])
        await asyncio.sleep(0)

    asyncio.run(publish())
    assert not known()


def test_what_left_something_is_not_drained(world: World) -> None:
    world.create(*[world.spec()] * 3)
    session = world.open()
    taken = [
        world.write(leases.acquire, world.owner, session, AcquireRequest(max_jobs=n, max_nodes=1), "a" * n)
        for n in (2, 2)
    ]
    assert [(len(lease.jobs), lease.drained) for lease in taken] == [(2, False), (2, False)]  # the same two
    last = world.write(leases.acquire, world.owner, session, AcquireRequest(max_jobs=2, max_nodes=1), "b")
    assert (len(last.jobs), last.drained) == (1, True)


def test_only_who_may_want_to_hear_of_a_job_is_woken(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    published: set[str] = set()
    monkeypatch.setattr(world.runtime.hub, "publish", published.update)

    def woken(**query: Any) -> bool:
        return not published.isdisjoint(topics_of(world.owner, FeedQuery(**query)))

    [job_id] = world.create(world.spec(tags={"run": "a", "by": "me"}))
    assert woken()
    assert woken(kind=["job"], to_state=["PREPROCESSED"])
    assert woken(tags=["run:a"])
    assert woken(tags=["by:me"], to_state=["PREPROCESSED", "FAILED"])
    assert not woken(tags=["run:b"])
    assert not woken(tags=["by:me"], to_state=["FAILED"])
    assert not woken(kind=["batch_job"])

    published.clear()
    world.write(update.patch_job, world.owner, job_id, JobPatch(tags={"run": "b"}, state=S.USER_KILLED))
    assert woken(tags=["run:b"])
    assert not woken(tags=["run:a"])

    # Jobs of before the marks were kept.
    world.write(lambda unit: unit.connection.execute(text("UPDATE jobs SET tag_marks = NULL")))
    published.clear()
    world.write(update.delete_job, world.owner, job_id)
    assert woken(tags=["run:a"])
    assert not woken(tags=["run:a"], kind=["app"])


def test_tags_without_a_mark_in_common_have_different_topics() -> None:
    assert tag_marks({}) == 0
    every = [tag_marks({"n": str(n)}) for n in range(1000)]
    assert {mark.bit_count() for mark in every} == {1}
    assert len(set(every)) == 62
    assert max(every) < 2**62
    assert tag_marks({"a": "1", "b": "2"}) == tag_marks({"a": "1"}) | tag_marks({"b": "2"})


def test_who_publishes_in_the_loop_wakes_at_once_and_others_in_its_next_turn() -> None:
    async def run() -> None:
        hub = Hub()
        hub.start()
        with hub.subscribe(["a"]) as subscription:
            hub.publish(["a"])
            assert hub.generation == 1
            with pytest.raises(StopIteration):  # it need not wait for its turn
                subscription.wait(60).send(None)
            thread = threading.Thread(target=hub.publish, args=(["a"],))
            thread.start()
            thread.join()
            assert hub.generation == 1
            async with asyncio.timeout(20):
                await subscription.wait(60)
            assert hub.generation == 2

    asyncio.run(run())
