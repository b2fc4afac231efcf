"""What the hub remembers: whether something was published since."""

from __future__ import annotations

import asyncio

from balsam_exec.server import hub as hub_module
from balsam_exec.server.hub import Hub


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
