"""Listings come in pages; who wants all of one asks for page after page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from balsam_exec.model.base import MAX_PAGE, Page

R = TypeVar("R")


def every(page: Callable[..., Page[R]], **lookups: Any) -> Iterator[R]:
    """Everything that matches, in the order of ids: `every(service.jobs, state="FAILED")`."""
    after: int | None = None
    while True:
        found = page(after=after, **{"limit": MAX_PAGE, **lookups})
        yield from found.results
        after = found.next
        if after is None:
            return
