"""Where use cases run: what is brief in the event loop, unless a writer is at work. And what a transaction is."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Connection, func, insert, select, text

from balsam_exec.model.errors import Conflict, ServiceUnavailable
from balsam_exec.server.migrations import migrate
from balsam_exec.server.store.database import Database
from balsam_exec.server.store.dialect import bulk_insert
from balsam_exec.server.store.prepared import Prepared
from balsam_exec.server.store.schema import users

DEADLINE = 30
COUNT = Prepared(select(func.count().label("users")).select_from(users))


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
    finish = threading.Event()
    order: list[int] = []

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


# --- transactions on SQLite


class Users:
    """A database with the schema, used by one thread: as the event loop does, or as another thread."""

    def __init__(self, database: Database, file: Path) -> None:
        self.database = database
        self.file = file

    def beside(self) -> closing[sqlite3.Connection]:
        """Another process, that waits for nobody."""
        return closing(sqlite3.connect(self.file, timeout=0, isolation_level=None))

    def is_left_alone(self) -> bool:
        """Whether nobody holds a lock, or a snapshot."""
        with self.beside() as other:
            other.execute("BEGIN IMMEDIATE")
            other.execute("COMMIT")
            busy: int = other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        return not busy

    def count(self) -> int:
        with self.database.reading() as connection:
            return counted(connection)

    def check_undone(self, refused: Callable[[Connection], None], after: Callable[[Connection], None]) -> None:
        """The one leaves nothing, and the other is carried out as if it had not been."""
        with pytest.raises(Conflict):
            self.database.transaction(refused)
        assert self.is_left_alone()
        assert self.count() == 0
        self.database.transaction(after)
        assert self.count() == 1


@pytest.fixture(params=["in the loop", "in a thread"])
def table(request: pytest.FixtureRequest, tmp_path: Path, database: Database) -> Users:
    migrate(database.url)
    database._loop_thread = threading.get_ident() if request.param == "in the loop" else 0
    return Users(database, tmp_path / "balsam.db")


def counted(connection: Connection) -> int:
    found: int = COUNT.rows(connection, {})[0].users
    return found


def by_driver(connection: Connection, name: str = "ann") -> None:
    bulk_insert(connection, users, ("username", "created"), [(name, 1)])


def by_sqlalchemy(connection: Connection, name: str = "bob") -> None:
    connection.execute(insert(users).values(username=name, created=1))


Insert = Callable[[Connection], None]
WAYS = [(by_driver,), (by_sqlalchemy,), (by_driver, by_sqlalchemy), (by_sqlalchemy, by_driver)]


@pytest.mark.parametrize("ways", WAYS)
def test_a_transaction_is_carried_out_whoever_runs_its_statements(table: Users, ways: tuple[Insert, ...]) -> None:
    def work(connection: Connection) -> int:
        assert not connection.in_transaction()  # what was before is over, for SQLAlchemy too
        for way in ways:
            way(connection)
        with table.beside() as other:
            assert other.execute("SELECT count(*) FROM users").fetchone() == (0,)
        return counted(connection)

    with pytest.raises(ZeroDivisionError):
        table.database.transaction(lambda connection: work(connection) / 0)
    assert table.is_left_alone()
    assert table.database.transaction(work) == len(ways)
    assert table.is_left_alone()
    assert table.count() == len(ways)


@pytest.mark.parametrize("way", [by_driver, by_sqlalchemy])
def test_a_statement_that_fails_undoes_the_others(table: Users, way: Insert) -> None:
    def work(connection: Connection) -> None:
        for other in (by_driver, by_sqlalchemy, way):
            other(connection)

    table.check_undone(work, way)


@pytest.mark.parametrize("way", [by_driver, by_sqlalchemy])
def test_a_commit_that_fails_undoes_all(table: Users, way: Insert) -> None:
    def work(connection: Connection) -> None:
        way(connection)
        connection.execute(text("PRAGMA defer_foreign_keys=ON"))
        connection.execute(text("INSERT INTO tokens (user_id, name, hash, created) VALUES (99, '', '', 1)"))

    table.check_undone(work, way)


def test_who_cannot_begin_says_so_and_may_come_again(table: Users) -> None:
    waits = text("PRAGMA busy_timeout=0")
    table.database.transaction(lambda connection: connection.execute(waits).close())
    with table.database.reading() as connection:
        connection.execute(waits).close()
    with table.beside() as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(ServiceUnavailable):
            table.database.transaction(by_driver)
        assert table.count() == 0  # who reads waits for nobody
    table.database.transaction(by_driver)
    assert table.count() == 1


def test_who_writes_has_the_lock_from_the_beginning(table: Users) -> None:
    def work(_: Connection) -> None:
        with table.beside() as other, pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")

    table.database.transaction(work)


def test_a_read_of_two_prepared_statements_is_of_one_moment(table: Users) -> None:
    with table.database.reading() as connection, table.beside() as other:
        assert counted(connection) == 0
        other.execute("INSERT INTO users (username, created) VALUES ('ann', 1)")
        assert counted(connection) == 0
        assert connection.execute(select(func.count()).select_from(users)).scalar() == 0
    assert table.count() == 1
    assert table.is_left_alone()


@pytest.mark.parametrize("sql", ["SELECT 1", "SELECT nothing"])
def test_a_read_that_fails_ends_its_snapshot(table: Users, sql: str) -> None:
    def read() -> None:
        with table.database.reading() as connection:
            counted(connection)
            connection.execute(text(sql)).all()
            raise ServiceUnavailable("now")

    with pytest.raises(ServiceUnavailable):
        read()
    assert table.is_left_alone()
    table.database.transaction(by_driver)
    assert table.count() == 1
