"""What all wire resources share."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Generic, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

#: The most items in one page, and the page given when none is asked for.
MAX_PAGE = 1000
DEFAULT_PAGE = 100
#: The most jobs in one bulk request; clients send more in several.
MAX_BULK = 10_000
#: The largest request body, in bytes.
MAX_BODY = 64 * 1024 * 1024
#: The largest serialized entity (an app's code, a job's arguments, parameters or data, a result, an exception), in
#: bytes, that a service takes which is not set otherwise (seed 001 "Technical Details": "the order of 100KB").
MAX_ENTITY = 512 * 1024
#: The least that this limit can be set to: what is no larger, every service takes.
MIN_ENTITY_LIMIT = 64 * 1024
#: The most that this limit can be set to, in bytes.
MAX_ENTITY_LIMIT = 32 * 1024 * 1024

Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Identifier = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=100)]
Tags = dict[
    Annotated[str, StringConstraints(min_length=1, max_length=100)], Annotated[str, StringConstraints(max_length=200)]
]
Id = Annotated[int, Field(ge=1, le=2**63 - 1)]
Entity = Annotated[bytes, Field(max_length=MAX_ENTITY_LIMIT)]
Json = dict[str, Any]
Timestamp = AwareDatetime


def now() -> datetime:
    return datetime.now(UTC)


def storable(text: str) -> str:
    """What programs print and raise, as it can be sent and stored: JSON takes no half of a character (as in names of
    files that are not UTF-8), databases no NUL."""
    return text.encode(errors="backslashreplace").decode().replace("\0", "\\0")


class Wire(BaseModel):
    """A frozen value on the wire: JSON, unknown fields refused, bytes as URL-safe base64."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, ser_json_bytes="base64", val_json_bytes="base64"
    )


class Record(Wire):
    """What the service answers with. Newer services may say more than this client knows."""

    model_config = ConfigDict(extra="ignore")


T = TypeVar("T")


class Page(Record, Generic[T]):
    """One page of a listing. `next` is the `after` of the next page (keyset), None on the last one or where the
    order is not by id."""

    results: list[T]
    next: int | None = None


class Count(Record):
    count: int
