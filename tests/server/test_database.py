"""Where use cases run: what is brief in the event loop, unless a writer is at work."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from balsam_exec.server.store.database import Database

DEADLINE = 30


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'balsam.db'}")
    yield database
    database.close()


def test_brief_work_takes_no_thread(database: Database) -> None:
    async def run() -> None:
        here = threading.get_ident()
        assert await database.in_reader(threading.get_ident, brief=True) == here
        assert await database.in_writer(threading.get_ident, brief=True) == here
        assert await database.in_reader(threading.get_ident) != here
        assert await database.in_writer(threading.get_ident) != here

    asyncio.run(run())


def test_brief_work_waits_for_a_writer_and_the_loop_does_not(database: Database) -> None:
    finish, order = threading.Event(), []

    async def run() -> None:
        here = threading.get_ident()
        long = asyncio.ensure_future(database.in_writer(lambda: order.append(finish.wait(DEADLINE))))
        await asyncio.sleep(0)
        brief = asyncio.ensure_future(database.in_writer(lambda: order.append(threading.get_ident()), brief=True))
        await asyncio.sleep(0)
        assert await database.in_reader(lambda: list(order), brief=True) == []
        finish.set()
        await asyncio.wait_for(asyncio.gather(long, brief), DEADLINE)
        assert order[0] is True
        assert order[1] != here

    asyncio.run(run())


def test_a_writer_that_nobody_waits_for_still_counts(database: Database) -> None:
    finish = threading.Event()

    async def run() -> None:
        long = asyncio.ensure_future(database.in_writer(lambda: finish.wait(DEADLINE)))
        await asyncio.sleep(0)
        long.cancel()
        with pytest.raises(asyncio.CancelledError):
            await long
        after = asyncio.ensure_future(database.in_writer(threading.get_ident, brief=True))
        await asyncio.sleep(0)
        assert not after.done()
        finish.set()
        assert await asyncio.wait_for(after, DEADLINE) != threading.get_ident()
        async with asyncio.timeout(DEADLINE):
            while await database.in_writer(threading.get_ident, brief=True) != threading.get_ident():
                await asyncio.sleep(0)

    asyncio.run(run())
