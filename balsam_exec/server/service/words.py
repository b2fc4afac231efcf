"""How the service's sentences say numbers, times and lists."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))


def span(seconds: float) -> str:
    """A stretch of time in its coarsest unit that still says something: "3 h", "70 s", "0.2 s"."""
    for size, unit in _UNITS:
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{max(seconds, 0):.1f} s".replace(".0", "")


def ago(then: datetime, now: datetime) -> str:
    """Before how long something was, and when, where that is not to be seen from it."""
    seconds = (now - then).total_seconds()
    exactly = f", at {then:%Y-%m-%d %H:%M:%S} UTC" if seconds >= 120 else ""
    return f"{span(seconds)} ago{exactly}"


def number(count: int, noun: str) -> str:
    """ "1 job", "2 jobs" """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def are(count: int) -> str:
    return "is" if count == 1 else "are"


def listed(items: Sequence[object], total: int | None = None) -> str:
    """The items, and how many more there are."""
    more = (len(items) if total is None else total) - len(items)
    return ", ".join(map(str, items)) + (f" and {more:,} more" if more > 0 else "")


def pairs(tags: Iterable[tuple[str, str]]) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(tags))
