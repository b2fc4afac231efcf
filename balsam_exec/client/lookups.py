"""From keyword lookups, as people write them, to a query of the model; and what requests look like."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from balsam_exec.model.errors import InvalidRequest

Q = TypeVar("Q", bound=BaseModel)

_PAGING = frozenset({"limit", "offset", "after", "ordering", "cursor", "timeout", "include_results"})


def build(kind: type[Q], lookups: Mapping[str, Any]) -> Q:
    """A query of `kind` from its fields; a single value stands for a list of one, a dict of tags for "key:value".

    Raises InvalidRequest, naming what is legal, for an unknown lookup or a bad value.
    """
    unknown = sorted(set(lookups) - set(kind.model_fields))
    if unknown:
        raise InvalidRequest(f"{kind.__name__} has no {', '.join(unknown)}; it has: {', '.join(legal_lookups(kind))}")
    many = _many(kind)
    given = {name: _listed(name, value) if name in many else value for name, value in lookups.items()}
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise InvalidRequest(f"{kind.__name__}: {explain(error)}") from None


def legal_lookups(kind: type[BaseModel]) -> list[str]:
    return sorted(set(kind.model_fields) - _PAGING)


def explain(error: ValidationError) -> str:
    """A pydantic error in one line that a person can use."""
    problems = []
    for item in error.errors(include_url=False, include_context=False):
        where = ".".join(str(part) for part in item["loc"])
        shown = repr(item["input"])
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        problems.append(f"{where}: {item['msg']} (given: {shown})" if where else item["msg"])
    return "; ".join(problems)


def url_params(query: BaseModel) -> list[tuple[str, str]]:
    """What differs from the defaults, lists as repeated parameters."""
    changed = query.model_dump(mode="json", exclude_defaults=True)
    return [
        (name, _text(item))
        for name, value in changed.items()
        for item in (value if isinstance(value, list) else [value])
    ]


def key_of_chunk(key: str, start: int, count: int) -> str:
    """The idempotency key of the request that creates so many of the jobs that have this key together."""
    return f"{key}-{start}-{count}"


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def adapter(kind: Any) -> TypeAdapter[Any]:
    """The (costly to make) adapter of a type, made once."""
    return _adapter(kind)


@cache
def _many(kind: type[BaseModel]) -> frozenset[str]:
    """The fields of a query that take several values."""
    return frozenset(
        name
        for name, field in kind.model_fields.items()
        if isinstance(field.get_default(call_default_factory=True), list)
    )


def _listed(name: str, value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        if name != "tags":
            raise InvalidRequest(f"{name} does not take a dict")
        return [f"{key}:{text}" for key, text in value.items()]
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        return list(value)
    return [value]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
