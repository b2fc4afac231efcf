"""Column types: moments as integers of microseconds, JSON as text, lists of ids as one parameter."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

from pydantic_core import from_json, to_json
from sqlalchemy import BigInteger, Dialect, Result, Text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import TypeDecorator, TypeEngine

from balsam_exec.model.errors import InvalidRequest

#: A row of a result; which columns it has the type checker does not follow.
AnyRow: TypeAlias = Any

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_encode = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode


def micros(moment: datetime) -> int:
    """Microseconds since 1970. Raises InvalidRequest where the moment is outside the calendar in UTC."""
    try:
        return (moment.astimezone(UTC) - _EPOCH) // _MICROSECOND
    except OverflowError:
        raise InvalidRequest(f"{moment} is outside the calendar") from None


def moment(value: int) -> datetime:
    return _EPOCH + timedelta(microseconds=value)


def encode(value: Any) -> str | None:
    """JSON text; None for an empty container, which is what most of them are."""
    if not value:
        return None
    text = to_json(value, inf_nan_mode="constants").decode()
    if "NaN" not in text and "Infinity" not in text:
        return text
    try:  # as a number, or only in a text?
        return _encode(value)
    except ValueError:
        raise InvalidRequest("JSON has no infinity and no NaN: send null or a string") from None


def decode(text: str | None) -> dict[str, Any]:
    """The object of what `encode` made of it."""
    return {} if text is None else from_json(text)


def dicts(result: Result[*tuple[Any, ...]]) -> list[dict[str, Any]]:
    """The rows as dicts. Their keys are plain strings: SQLAlchemy's own kind of them is slow to write as JSON."""
    names = [str(name) for name in result.keys()]  # noqa: SIM118 - a result is no dict
    return [dict(zip(names, row, strict=True)) for row in result]


class Moment(TypeDecorator[datetime]):
    """A datetime in Python, microseconds since 1970 in the database; integers go in as they are."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> int | None:
        return micros(value) if isinstance(value, datetime) else value

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        return None if value is None else moment(value)


class JsonText(TypeDecorator[Any]):
    """A JSON object; empty and NULL are one."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return encode(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        return decode(value)


class JsonList(JsonText):
    """A JSON array; empty and NULL are one."""

    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        return [] if value is None else from_json(value)


class IdList(TypeDecorator[list[int]]):
    """Many ids as one bound parameter: an array on PostgreSQL, JSON text on SQLite."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(ARRAY(BigInteger()) if dialect.name == "postgresql" else Text())

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        return list(value) if dialect.name == "postgresql" else to_json(list(value)).decode()
