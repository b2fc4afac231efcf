"""From the queries of the model to SQL conditions, orders and pages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import ColumnElement, Select, UnaryExpression, not_
from sqlalchemy.sql.functions import func

from balsam_exec.model.errors import InvalidRequest
from balsam_exec.model.queries import Query
from balsam_exec.server.store.dialect import has_text, starts_with

PAGING = frozenset({"limit", "offset", "after", "ordering"})


def tag_pairs(tags: Iterable[str]) -> list[tuple[str, str]]:
    """Tags of a query as (key, value). Raises InvalidRequest for one that is not "key:value"."""
    pairs = []
    for tag in tags:
        key, colon, value = tag.partition(":")
        if not colon:
            raise InvalidRequest(f"tags: {tag!r} is not of the form key:value")
        pairs.append((key, value))
    return pairs


def given(query: Query) -> dict[str, Any]:
    """The lookups of a query that say something, without its paging."""
    values = {name: getattr(query, name) for name in type(query).model_fields if name not in PAGING}
    return {name: value for name, value in values.items() if value is not None and value != []}


def condition(column: ColumnElement[Any], lookup: str, value: Any) -> ColumnElement[bool]:
    """`column lookup value`, with "" for the exact match of any of a list."""
    if lookup == "":
        return column == value[0] if len(value) == 1 else column.in_(value)
    if lookup == "ne":
        return not_(func.coalesce(column.in_(value), False))
    if lookup == "contains":
        return has_text(column, value)
    if lookup == "startswith":
        return starts_with(column, value)
    operators = {"lt": column.__lt__, "lte": column.__le__, "gt": column.__gt__, "gte": column.__ge__}
    return operators[lookup](value)


def conditions(lookups: Mapping[str, Any], columns: Mapping[str, ColumnElement[Any]]) -> list[ColumnElement[bool]]:
    """One condition for each lookup; `columns` has what a field is in SQL."""
    found = []
    for name, value in lookups.items():
        field, _, lookup = name.partition("__")
        found.append(condition(columns[field], lookup, value))
    return found


def paged(
    statement: Select[Any], query: Query, columns: Mapping[str, ColumnElement[Any]], key: ColumnElement[int]
) -> Select[Any]:
    """The page that the query asks for and one row more, so that `page` sees whether there is a next one."""
    ordering: str = query.ordering  # type: ignore[attr-defined]
    field = ordering.removeprefix("-")
    descending = ordering.startswith("-")
    order: list[UnaryExpression[Any]] = []
    if field != "id":
        if query.after is not None:
            raise InvalidRequest(f"after goes with an order by id, not by {field}: use offset")
        order.append(columns[field].desc() if descending else columns[field].asc())
    elif query.after is not None:
        statement = statement.where(key < query.after if descending else key > query.after)
    order.append(key.desc() if descending else key.asc())
    return statement.order_by(*order).limit(query.limit + 1).offset(query.offset or None)


def page(rows: list[dict[str, Any]], query: Query) -> dict[str, Any]:
    """The answer (model.base.Page) from the rows that `paged` gave."""
    more = len(rows) > query.limit
    by_id = query.ordering in ("id", "-id")  # type: ignore[attr-defined]
    results = rows[: query.limit]
    return {"results": results, "next": results[-1]["id"] if more and by_id else None}
