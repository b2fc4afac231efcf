"""Statements that are compiled once and then just run: those that every job passes through."""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Dialect
from sqlalchemy.sql.compiler import SQLCompiler

from balsam_exec.server.store.dialect import by_driver
from balsam_exec.server.store.types import AnyRow, dicts

_Process = Callable[[Any], Any] | None


class Prepared:
    """A SELECT, INSERT, UPDATE or DELETE of SQLAlchemy's that is run again and again.

    On SQLite the driver runs it: SQLAlchemy's way there and back takes several times as long as a statement does. Its
    parameters are bound and its columns read by their types, and its errors are raised as SQLAlchemy would.
    """

    def __init__(self, statement: Any) -> None:
        self.statement = statement
        self._compiled: _Compiled | None = None

    def rows(self, connection: Connection, parameters: Mapping[str, Any]) -> Sequence[AnyRow]:
        """What it selects or returns; columns are attributes of a row, too."""
        if connection.dialect.name != "sqlite":
            return connection.execute(self.statement, parameters).all()
        return self._for(connection.dialect).rows(connection, parameters)

    def one_or_none(self, connection: Connection, parameters: Mapping[str, Any]) -> AnyRow | None:
        """The row of a statement that has one at most."""
        found = self.rows(connection, parameters)
        return found[0] if found else None

    def dicts(self, connection: Connection, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        if connection.dialect.name != "sqlite":
            return dicts(connection.execute(self.statement, parameters))
        names = self._for(connection.dialect).names
        return [dict(zip(names, row, strict=True)) for row in self.rows(connection, parameters)]

    def run(self, connection: Connection, *parameters: Mapping[str, Any]) -> int:
        """Carry it out for each set of parameters; how many rows the last one changed."""
        if connection.dialect.name != "sqlite":
            return connection.execute(self.statement, parameters).rowcount
        compiled = self._for(connection.dialect)
        changed: list[int] = [compiled.execute(connection, each).rowcount for each in parameters]
        return changed[-1]

    def _for(self, dialect: Dialect) -> _Compiled:
        if self._compiled is None:
            self._compiled = _Compiled(self.statement, dialect)
        return self._compiled


class _Compiled:
    """A statement as the driver takes it."""

    def __init__(self, statement: Any, dialect: Dialect) -> None:
        compiled: SQLCompiler = statement.compile(dialect=dialect)
        self._sql = str(compiled)
        binds = [(name, compiled.binds[name]) for name in compiled.positiontup or ()]
        self._usual = {name: bind.value for name, bind in binds if not bind.required}
        self._binds: list[tuple[str, _Process]] = [
            (name, bind.type.dialect_impl(dialect).bind_processor(dialect)) for name, bind in binds
        ]
        columns = getattr(statement, "exported_columns", ())
        self.names = [str(column.key) for column in columns]
        processes = [column.type.dialect_impl(dialect).result_processor(dialect, None) for column in columns]
        self._processes = [(index, process) for index, process in enumerate(processes) if process is not None]
        namedtuple: Any = collections.namedtuple  # its names are known only here
        self._row: Callable[[Sequence[Any]], AnyRow] = namedtuple("Row", self.names, rename=True)._make

    def execute(self, connection: Connection, parameters: Mapping[str, Any]) -> Any:
        given = {**self._usual, **parameters} if self._usual else parameters
        values = [given[name] if process is None else process(given[name]) for name, process in self._binds]
        with by_driver(connection, self._sql) as driver:
            return driver.execute(self._sql, values)

    def rows(self, connection: Connection, parameters: Mapping[str, Any]) -> list[AnyRow]:
        found = self.execute(connection, parameters).fetchall()
        if not self._processes:
            return list(map(self._row, found))
        rows = []
        for row in found:
            values = list(row)
            for index, process in self._processes:
                values[index] = process(values[index])
            rows.append(self._row(values))
        return rows
