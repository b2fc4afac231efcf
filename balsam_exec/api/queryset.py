"""Lazy queries: `Job.objects.filter(...).exclude(...).order_by(...)[:10]` asks the service when it is read."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, Self, TypeVar, get_args, overload

from balsam_exec.api.binding import Client
from balsam_exec.api.resource import Resource
from balsam_exec.client.lookups import build, legal_lookups
from balsam_exec.model.base import MAX_PAGE
from balsam_exec.model.errors import InvalidRequest
from balsam_exec.model.queries import Query

R = TypeVar("R", bound=Resource)
QS = TypeVar("QS", bound="QuerySet[Any]")

#: How many a repr shows.
_SHOWN = 20
_OPPOSITE = {"": "ne", "ne": "", "lt": "gte", "gte": "lt", "gt": "lte", "lte": "gt"}
_TIGHTER: dict[str, Callable[[Any, Any], Any]] = {"lt": min, "lte": min, "gt": max, "gte": max}


class Objects(Generic[QS]):
    """`Job.objects`: a fresh query for all, of the class it is taken from."""

    def __init__(self, kind: type[QS]) -> None:
        self._kind = kind

    def __get__(self, obj: object, owner: type[Any]) -> QS:
        return self._kind(owner)


class QuerySet(Generic[R]):
    """Some of a resource. Immutable: every method that narrows it gives another.

    Iterating asks for page after page and keeps what it got; `iterator()` keeps nothing. Lookups are those of
    `balsam_exec.model.queries`: `field=value`, `field=[any, of, these]`, `tags={"key": "value"}`, `field__ne`, `__lt`,
    `__lte`, `__gt`, `__gte`, `__contains`, `__startswith`; several must all hold.
    """

    def __init__(self, kind: type[R]) -> None:
        self._kind = kind
        self._filters: dict[str, Any] = {}
        self._ordering = "id"
        self._start = 0
        self._stop: int | None = None
        self._nothing = False
        self._found: list[R] | None = None

    # --- narrowing

    def all(self) -> Self:
        return self._but()

    def filter(self, **lookups: Any) -> Self:
        """Those that match all of the lookups too. Raises InvalidRequest for an unknown one, naming those there are."""
        self._whole("filter")
        narrowed = self._but()
        client = self._client()
        for name, value in lookups.items():
            narrowed._add(*self._lookup(client, name, value))
        build(self._kind.routes.query, narrowed._filters)  # complain here rather than when it is read
        return narrowed

    def exclude(self, **lookup: Any) -> Self:
        """Those that do not match the lookup; one at a time, so that it is clear what is meant."""
        if len(lookup) != 1:
            raise InvalidRequest("exclude takes one lookup; chain several: exclude(a=1).exclude(b=2)")
        [(name, value)] = lookup.items()
        field, _, how = name.partition("__")
        opposite = _OPPOSITE.get("" if how in ("exact", "in") else how)
        if opposite is None or field == "tags":
            raise InvalidRequest(f"exclude({name}=...) is not possible; use one of: field, {', '.join(_OPPOSITE)[2:]}")
        if how in ("", "exact", "in") and isinstance(value, (list, tuple, set, frozenset)) and not value:
            return self._but()
        return self.filter(**{f"{field}__{opposite}" if opposite else field: value})

    def order_by(self, field: str) -> Self:
        """By a field, or backwards by "-field"."""
        self._whole("order_by")
        annotation = self._kind.routes.query.model_fields["ordering"].annotation
        if field not in get_args(annotation):
            raise InvalidRequest(f"cannot order by {field!r}; possible: {', '.join(get_args(annotation))}")
        return self._but(_ordering=field)

    @overload
    def __getitem__(self, index: int) -> R: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> R | Self:
        if isinstance(index, slice):
            return self._sliced(index)
        if index < 0:
            raise InvalidRequest("no negative index: order_by the other way round and take [0]")
        if self._found is not None:
            return self._found[index]
        for found in self._sliced(slice(index, index + 1)).iterator():
            return found
        raise IndexError(index)

    # --- reading

    def __iter__(self) -> Iterator[R]:
        if self._found is not None:
            yield from self._found
            return
        found = []
        for one in self.iterator():
            found.append(one)
            yield one
        self._found = found

    def iterator(self) -> Iterator[R]:
        """As iterating, without keeping what was found: for very many."""
        client, query = self._client(), self._query()
        left = None if self._stop is None else self._stop - self._start
        position: dict[str, int] = {"offset": self._start}
        while not self._nothing and (left is None or left > 0):
            limit = MAX_PAGE if left is None else min(MAX_PAGE, left)
            asked = query.model_copy(update={"limit": limit, **position})
            page = self._kind.routes.page(client.service, asked)
            for record in page.results:
                yield self._kind.from_record(client, record)
            left = None if left is None else left - limit
            # Keyset where the order allows it: as fast at the end as at the beginning, and undisturbed by changes.
            if page.next is not None:
                position = {"after": page.next, "offset": 0}
            elif len(page.results) == limit and self._ordering.lstrip("-") != "id":
                position = {"offset": asked.offset + limit}
            else:
                return

    def __len__(self) -> int:
        return len(self._all_found())

    def __bool__(self) -> bool:
        return self.exists()

    def __contains__(self, item: object) -> bool:
        return item in self._all_found()

    def exists(self) -> bool:
        return bool(self._found) if self._found is not None else self.first() is not None

    def count(self) -> int:
        return len(self._found) if self._found is not None else sum(1 for _ in self.iterator())

    def first(self) -> R | None:
        """The first in order, None if there is none."""
        if self._found is not None:
            return self._found[0] if self._found else None
        return next(self._sliced(slice(0, 1)).iterator(), None)

    def get(self, **lookups: Any) -> R:
        """The only one that matches. Raises DoesNotExist or MultipleObjectsReturned, as in `Job.DoesNotExist`."""
        wanted = self.filter(**lookups) if lookups else self
        found = list(wanted._sliced(slice(0, 2)).iterator())
        if len(found) == 1:
            return found[0]
        name, asked = self._kind.__name__, wanted._described()
        if found:
            raise self._kind.MultipleObjectsReturned(f"more than one {name} with {asked}: narrow it, or use filter")
        raise self._kind.DoesNotExist(f"no {name} with {asked}")

    # --- changing

    def create(self, **values: Any) -> R:
        """Make one and save it."""
        made = self._kind(**values)
        made.save()
        return made

    def update(self, **changes: Any) -> int:
        """Change all of these; how many there were."""
        found = list(self.iterator())
        for one in found:
            for name, value in changes.items():
                setattr(one, name, value)
            one.save()
        return len(found)

    def delete(self) -> int:
        """Delete all of these; how many there were."""
        found = list(self.iterator())
        for one in found:
            one.delete()
        return len(found)

    # --- insides

    def _client(self) -> Client:
        return self._kind.client()

    def _lookup(self, client: Client, name: str, value: Any) -> tuple[str, Any]:
        """What people write as what the model knows: names of sites and the like become ids."""
        if name in ("site", "site_name"):
            name = "site_id"
        if name == "site_id" and value is not None:
            many = value if isinstance(value, (list, tuple, set, frozenset)) else [value]
            return name, [client.site_id(one) for one in many]
        return name, value

    def _add(self, name: str, value: Any) -> None:
        field, _, how = name.partition("__")
        if how in ("exact", "in"):
            name, how = field, ""
        query = self._kind.routes.query
        if name not in legal_lookups(query):
            raise InvalidRequest(
                f"no lookup {name} for {self._kind.__name__}; possible: {', '.join(legal_lookups(query))}"
            )
        if value is None:
            raise InvalidRequest(f"{name}=None matches nothing: leave it out, or give a value")
        if how in _TIGHTER or how in ("contains", "startswith"):
            self._add_one(name, how, value)
            return
        given: list[Any] = getattr(build(query, {name: value}), name)
        before = self._filters.get(name)
        if before is None:
            self._filters[name] = given
        elif field == "tags" or how == "ne":
            self._filters[name] = before + [one for one in given if one not in before]
        else:
            self._filters[name] = [one for one in before if one in given]
        if not (self._filters[name] or how == "ne" or field == "tags"):
            self._nothing = True  # "any of no values", which on the wire would not be a filter at all
        if not self._filters[name]:
            del self._filters[name]

    def _add_one(self, name: str, how: str, value: Any) -> None:
        value = getattr(build(self._kind.routes.query, {name: value}), name)
        before = self._filters.get(name)
        if before is None or before == value:
            self._filters[name] = value
        elif how in _TIGHTER:
            self._filters[name] = _TIGHTER[how](before, value)
        else:
            raise InvalidRequest(f"{name} is given twice: {before!r} and {value!r}")

    def _query(self) -> Query:
        return build(self._kind.routes.query, {**self._filters, "ordering": self._ordering})

    def _sliced(self, part: slice) -> Self:
        start, stop = part.start or 0, part.stop
        if part.step not in (None, 1):
            raise InvalidRequest("no steps in slices")
        if start < 0 or (stop is not None and stop < 0):
            raise InvalidRequest("no negative slices: order_by the other way round and slice from the start")
        end = self._stop if stop is None else self._start + stop
        end = end if self._stop is None or end is None else min(end, self._stop)
        narrowed = self._but(_start=self._start + start, _stop=end)
        if self._found is not None:
            narrowed._found = self._found[part]
        return narrowed

    def _whole(self, what: str) -> None:
        if self._start or self._stop is not None:
            raise InvalidRequest(f"{what} before slicing, not after")

    def _all_found(self) -> list[R]:
        if self._found is None:
            self._found = list(self.iterator())
        return self._found

    def _but(self, **changes: Any) -> Self:
        other = copy.copy(self)
        other._filters = dict(self._filters)
        other._found = None
        for name, value in changes.items():
            setattr(other, name, value)
        return other

    def _described(self) -> str:
        def short(value: Any) -> Any:
            return value[0] if isinstance(value, list) and len(value) == 1 else value

        said: Mapping[str, Any] = {name: short(value) for name, value in self._filters.items()}
        return ", ".join(f"{name}={value!s}" for name, value in said.items()) or "any id"

    def __repr__(self) -> str:
        shown = self._found if self._found is not None else list(self._sliced(slice(0, _SHOWN + 1)).iterator())
        more = ", ..." if len(shown) > _SHOWN else ""
        return f"<{self._kind.__name__}.objects: [{', '.join(map(repr, shown[:_SHOWN]))}{more}]>"
