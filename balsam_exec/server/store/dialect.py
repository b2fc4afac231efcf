"""Everything that differs between SQLite and PostgreSQL, apart from column types (store/types.py)."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from sqlalchemy import Boolean, ColumnElement, Connection, Engine, Table, create_engine, event, func, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

CHANNEL = "balsam"
_LAST_ID = "SELECT seq FROM sqlite_sequence WHERE name = ?"
_NEXT_IDS = text("SELECT nextval(:sequence) FROM generate_series(1, :count)")
_PAYLOAD_LIMIT = 7000  # PostgreSQL refuses notifications of 8000 bytes


def is_sqlite(url: str) -> bool:
    return make_url(url).get_backend_name() == "sqlite"


def make_engine(url: str, connections: int) -> Engine:
    """An engine whose transactions take the write lock at their start (SQLite), or as they need (PostgreSQL)."""
    if not is_sqlite(url):
        pg_url = make_url(url).set(drivername="postgresql+psycopg")
        return create_engine(
            pg_url,
            pool_size=connections,
            max_overflow=2,
            connect_args={"options": "-c idle_in_transaction_session_timeout=60s -c lock_timeout=60s"},
        )
    engine = create_engine(url, pool_size=connections, max_overflow=2, connect_args={"check_same_thread": False})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions are begun by _begin_sqlite, not by the driver
    _use_wal(connection)
    for pragma in (
        "busy_timeout=30000",
        "synchronous=NORMAL",
        "wal_autocheckpoint=4000",
        "foreign_keys=ON",
        "temp_store=MEMORY",
        "cache_size=-8000",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _use_wal(connection: Any) -> None:
    """Write-ahead logging, which the file keeps. Who makes the change cannot wait for a lock, only try again."""
    deadline = time.monotonic() + 30
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _begin_sqlite(connection: Connection) -> None:
    with by_driver(connection, "BEGIN") as driver:
        if not driver.in_transaction:  # of `SqliteTransaction`
            driver.execute(_how_to_begin(connection))


def _how_to_begin(connection: Connection) -> str:
    return "BEGIN" if connection.get_execution_options().get("readonly", False) else "BEGIN IMMEDIATE"


class SqliteTransaction:
    """`connection.begin()` at half its cost, which is as much as that of a statement or two."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._run(_how_to_begin(self._connection))

    def __exit__(self, kind: object, _error: object, _traceback: object) -> None:
        try:
            if kind is None:
                self._run("COMMIT")
        finally:
            self._connection.connection.rollback()  # what was not committed
            if self._connection.in_transaction():  # as SQLAlchemy believes, of which it has seen a statement
                self._connection.rollback()

    def _run(self, sql: str) -> None:
        with by_driver(self._connection, sql) as driver:
            driver.execute(sql)


class any_of(FunctionElement[bool]):
    """`any_of(column, bindparam(..., type_=IdList()))`: always the same SQL text."""

    name = "any_of"
    type = Boolean()
    inherit_cache = True
    _is_implicitly_boolean = True  # else SQLite gets "... = 1", past which it sees no index


@compiles(any_of, "sqlite")
def _any_of_sqlite(element: Any, compiler: Any, **options: Any) -> str:
    column, ids = element.clauses
    return f"{compiler.process(column, **options)} IN (SELECT value FROM json_each({compiler.process(ids, **options)}))"


@compiles(any_of, "postgresql")
def _any_of_postgresql(element: Any, compiler: Any, **options: Any) -> str:
    column, ids = element.clauses
    return f"{compiler.process(column, **options)} = ANY ({compiler.process(ids, **options)})"


class has_text(FunctionElement[bool]):
    """`has_text(column, part)`: the part occurs in the column, upper and lower case told apart."""

    name = "has_text"
    type = Boolean()
    inherit_cache = True
    _is_implicitly_boolean = True  # else SQLite gets "... = 1", past which it sees no index


@compiles(has_text, "sqlite")
def _has_text_sqlite(element: Any, compiler: Any, **options: Any) -> str:
    column, part = element.clauses
    return f"instr({compiler.process(column, **options)}, {compiler.process(part, **options)}) > 0"


@compiles(has_text, "postgresql")
def _has_text_postgresql(element: Any, compiler: Any, **options: Any) -> str:
    column, part = element.clauses
    return f"strpos({compiler.process(column, **options)}, {compiler.process(part, **options)}) > 0"


def starts_with(column: ColumnElement[str], start: str) -> ColumnElement[bool]:
    return func.substr(column, 1, len(start)) == start


@cache
def _insert_sql(table: Table, columns: tuple[str, ...], sqlite: bool) -> str:
    names = ", ".join(columns)
    if sqlite:
        return f"INSERT INTO {table.name} ({names}) VALUES ({', '.join('?' * len(columns))})"
    return f"COPY {table.name} ({names}) FROM STDIN"


def bulk_insert(connection: Connection, table: Table, columns: tuple[str, ...], rows: Sequence[Sequence[Any]]) -> None:
    """Insert many rows of plain database values the quickest way there is."""
    if not rows:
        return
    sqlite = connection.dialect.name == "sqlite"
    sql = _insert_sql(table, columns, sqlite)
    if sqlite:
        with by_driver(connection, sql) as driver:
            driver.executemany(sql, rows)
        return
    with by_driver(connection, sql) as driver, driver.cursor() as cursor, cursor.copy(sql) as copy:
        for row in rows:
            copy.write_row(row)


class by_driver:
    """The driver's own connection, past SQLAlchemy; its errors are raised as SQLAlchemy would raise them."""

    def __init__(self, connection: Connection, sql: str) -> None:
        self._connection = connection
        self._sql = sql

    def __enter__(self) -> Any:
        return self._connection.connection.driver_connection

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if error is None:
            return
        dialect = self._connection.dialect
        base_error: Any = dialect.loaded_dbapi.Error
        if isinstance(error, base_error):
            raise DBAPIError.instance(self._sql, None, error, base_error, dialect=dialect) from error


def reserve_ids(connection: Connection, table: Table, count: int) -> Sequence[int]:
    """Ids for `count` new rows, ascending, never used before. On SQLite within the write transaction."""
    if (first := next_id(connection, table)) is not None:
        return range(first, first + count)
    ids = connection.execute(_NEXT_IDS, {"sequence": f"{table.name}_id_seq", "count": count}).scalars()
    return sorted(ids)


def next_id(connection: Connection, table: Table) -> int | None:
    """The id that the next row will have, and those after it the next ones, where a write transaction knows."""
    if connection.dialect.name != "sqlite":
        return None
    with by_driver(connection, _LAST_ID) as driver:
        found = driver.execute(_LAST_ID, (str(table.name),)).fetchone()  # SQLAlchemy's own kind of string is slow here
    return (found[0] if found else 0) + 1


def order_events(connection: Connection, owner_id: int) -> None:
    """Make the ids of this owner's events come in the order of commits, until this transaction ends.

    To be called after the last row lock is taken. SQLite's writers are in order by themselves.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:owner)"), {"owner": owner_id})


def order_families(connection: Connection, owner_id: int) -> None:
    """Let no other such transaction move jobs of this owner that wait for each other, or change which do, until this
    one ends: it would lock the same jobs in another order, and two changes, each right by itself, may close a circle.

    To be called before the first job is locked. Who reports on a few jobs that run need not.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(1, :owner)"), {"owner": owner_id})


def notify(connection: Connection, sender: str, topics: Iterable[str]) -> None:
    """Tell the other server processes at commit. SQLite is served by one process only."""
    if connection.dialect.name != "postgresql":
        return
    payload = f"{sender} {' '.join(topics)}"
    if len(payload) > _PAYLOAD_LIMIT:
        payload = f"{sender} *"
    connection.execute(text("SELECT pg_notify(:channel, :payload)"), {"channel": CHANNEL, "payload": payload})


def listening_address(engine: Engine) -> str:
    """The PostgreSQL database of the engine as libpq writes it."""
    return engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
