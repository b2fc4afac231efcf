"""Connections and the threads that use them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

from sqlalchemy import Connection as Connection  # what the rest of the server knows of SQLAlchemy
from sqlalchemy import Engine
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, InterfaceError, OperationalError, StatementError

from balsam_exec.model.errors import BalsamError, Conflict, InvalidRequest, ServiceUnavailable
from balsam_exec.server.store.dialect import SqliteTransaction, is_sqlite, make_engine

T = TypeVar("T")

#: PostgreSQL's "serialization failure" and "deadlock detected": the transaction may just be tried again.
_TRY_AGAIN = frozenset({"40001", "40P01"})
_ATTEMPTS = 5


class Database:
    """Runs functions in transactions, in threads of its own.

    On SQLite one thread writes: the one lock of a process for writers, who thus never spin on the database's. There
    what is brief runs in the event loop itself, since to hand it to a thread and back takes as long as to do it.
    """

    def __init__(self, url: str, threads: int = 8) -> None:
        self.url = url
        self.kind = "sqlite" if is_sqlite(url) else "postgresql"
        self.engine = make_engine(url, connections=threads + 1)
        self._reading = self.engine.execution_options(
            **({"readonly": True} if self.kind == "sqlite" else {"isolation_level": "AUTOCOMMIT"})
        )
        self._readers = ThreadPoolExecutor(4 if self.kind == "sqlite" else threads, thread_name_prefix="database")
        self._inline = self.kind == "sqlite"
        self._begin: Callable[[Connection], AbstractContextManager[object]] = (
            SqliteTransaction if self._inline else Connection.begin
        )
        self._loop_thread = 0  #: the thread of what is done inline
        self._kept: dict[Engine, Connection] = {}  #: its connections
        self._writing = 0  #: how many transactions the writer has to do
        self._writers = ThreadPoolExecutor(1, thread_name_prefix="writer") if self.kind == "sqlite" else self._readers

    @property
    def is_inline(self) -> bool:
        """Whether this is the thread of the event loop, which does what is brief itself."""
        return threading.get_ident() == self._loop_thread

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection to read with: one snapshot on SQLite, one for each statement on PostgreSQL."""
        with translated_errors(), self._connection(self._reading) as connection, self._begin(connection):
            yield connection

    @contextmanager
    def _connection(self, engine: Engine) -> Iterator[Connection]:
        """One from the pool; inline always the same: to take it from there and give it back costs as much as a
        transaction does."""
        if not self.is_inline:
            with engine.connect() as connection:
                yield connection
            return
        yield self._kept.get(engine) or self._kept.setdefault(engine, engine.connect())

    def transaction(self, work: Callable[[Connection], T]) -> T:
        """`work` in a transaction, again where the database asks for it; so it has no effects but on the database."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with translated_errors(), self._connection(self.engine) as connection, self._begin(connection):
                    return work(connection)
            except _TryAgain:
                if attempt == _ATTEMPTS:
                    raise ServiceUnavailable("the database is too busy: try again") from None
        raise AssertionError("unreachable")

    async def in_reader(self, function: Callable[[], T], *, brief: bool = False) -> T:
        if brief and self._inline:
            return self._do_inline(function)
        return await asyncio.get_running_loop().run_in_executor(self._readers, function)

    async def in_writer(self, function: Callable[[], T], *, brief: bool = False) -> T:
        if brief and self._inline and not self._writing:
            return self._do_inline(function)
        loop = asyncio.get_running_loop()
        self._writing += 1
        future = self._writers.submit(function)
        # When it is over, not when nobody waits for it any more.
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._written))
        return await asyncio.wrap_future(future)

    def _do_inline(self, function: Callable[[], T]) -> T:
        self._loop_thread = threading.get_ident()
        return function()

    def _written(self) -> None:
        self._writing -= 1

    def close(self) -> None:
        self._readers.shutdown()
        self._writers.shutdown()
        for connection in self._kept.values():
            connection.close()
        self._kept.clear()
        self.engine.dispose()


class _TryAgain(Exception):
    pass


@contextmanager
def translated_errors() -> Iterator[None]:
    """The database's errors as those of the model: what the caller can do about them."""
    try:
        yield
    except IntegrityError as error:
        raise Conflict("somebody else changed the same thing at the same time: look again, then try again") from error
    except (DataError, OverflowError) as error:
        raise InvalidRequest("a number is too large, or a text holds what the database cannot store") from error
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) in _TRY_AGAIN:
            raise _TryAgain from error
        if error.connection_invalidated or isinstance(error, (OperationalError, InterfaceError)):
            raise ServiceUnavailable(f"the database does not answer: {error.orig}") from error
        raise
    except StatementError as error:
        if isinstance(error.orig, BalsamError):  # from a column type
            raise error.orig from None
        raise
