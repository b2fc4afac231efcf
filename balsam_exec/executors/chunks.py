"""What `BalsamPoolExecutor.map(chunksize=n)` runs in one job. A module of its own: a worker imports only this."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any


def run_chunk(fn: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> list[Any]:
    """The results of `fn(*args)` for each `args` in `calls`."""
    return [fn(*args) for args in calls]
