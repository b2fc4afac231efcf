"""How large what is stored for its owners may be. Nothing is serialized only to be measured where that costs."""

from __future__ import annotations

from balsam_exec.model.errors import TooLarge


def check_size(what: str, data: bytes | str | None, limit: int) -> None:
    """Raise TooLarge for a payload, or JSON, of more than `limit` bytes; `what` names it."""
    if data is None or 4 * len(data) <= limit:  # no character has more than four bytes
        return
    size = len(data.encode() if isinstance(data, str) else data)
    if size > limit:
        raise TooLarge.entity(what, size, limit)
