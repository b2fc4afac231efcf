"""Printing: tables for people, tab-separated lines in a pipe, JSON where asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

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


def to_terminal() -> bool:
    return sys.stdout.isatty()


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2 if to_terminal() else None, default=str))


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
    if isinstance(value, Mapping):
        return " ".join(f"{key}={item}" for key, item in value.items())
    return str(value)


def stamp(moment: datetime) -> str:
    """A moment to the microsecond: local time for people, UTC in a pipe."""
    moment = moment.astimezone() if to_terminal() else moment.astimezone(UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S.%f}"
