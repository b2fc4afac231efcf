"""Printing: tables for people, tab-separated lines in a pipe, and with --json what the service calls things.

JSON has the names and values of the wire resources (docs/reference/rest), one document a command. Serialized code,
arguments and results, which mean nothing outside of Python, are left out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

T = TypeVar("T")

STYLES = {
    "JOB_FINISHED": "green",
    "RUNNING": "cyan",
    "running": "cyan",
    "FAILED": "red",
    "RUN_ERROR": "red",
    "submit_failed": "red",
    "RUN_TIMEOUT": "yellow",
    "USER_KILLED": "yellow",
    "ok": "green",
    "down": "red",
}
#: Serialized Python objects.
_OPAQUE = frozenset({"payload", "arguments"})


def to_terminal() -> bool:
    return sys.stdout.isatty()


def print_one(value: object, text: str, as_json: bool) -> None:
    """What a command says: a value, or how people read it."""
    if as_json:
        print_json(value)
    else:
        print(text)


def print_records(records: Sequence[T], columns: Mapping[str, Callable[[T], object]], as_json: bool) -> None:
    """A listing: each column's title, and what it has of a record."""
    if as_json:
        print_json(records)
    else:
        print_rows(list(columns), [[cell(record) for cell in columns.values()] for record in records])


def print_fields(record: BaseModel, as_json: bool, **names: object) -> None:
    """All fields of one record that say something, with the `names` of what it has only ids of."""
    if as_json:
        print_json(record)
        return
    shown = [name for name in type(record).model_fields if name not in _OPAQUE]
    fields = {"id": getattr(record, "id", None), **names, **{name: getattr(record, name) for name in shown}}
    print_rows(("FIELD", "VALUE"), [(name, value) for name, value in fields.items() if value not in (None, "", [], {})])


def print_json(value: object) -> None:
    print(json.dumps(value, indent=2 if to_terminal() else None, default=_encoded))


def _encoded(value: object) -> object:
    return jsonable(value) if isinstance(value, BaseModel) else str(value)


def jsonable(record: BaseModel) -> dict[str, Any]:
    """A record as its JSON is printed."""
    return record.model_dump(mode="json", exclude=set(_OPAQUE))


def print_rows(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table on a terminal; elsewhere a header and rows with tabs between the fields, for cut and awk."""
    if not to_terminal():
        for row in (columns, *rows):
            print("\t".join(_plain(value) for value in row))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_pretty(value), style=STYLES.get(str(value), "")) for value in row))
    Console(highlight=False).print(table)


def _plain(value: Any) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds")
    return " ".join(_text(value).split())


def _pretty(value: Any) -> str:
    if isinstance(value, datetime):
        return f"{value.astimezone():%Y-%m-%d %H:%M:%S}"
    return _text(value)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_defaults=True)
    if isinstance(value, Mapping):
        return " ".join(f"{key}={_text(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    return str(value)


def stamp(moment: datetime) -> str:
    """A moment to the microsecond: local time for people, UTC in a pipe."""
    moment = moment.astimezone() if to_terminal() else moment.astimezone(UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S.%f}"
