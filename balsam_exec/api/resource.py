"""What sites, jobs and allocations share: fields that notice every change, and how they are saved and found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Self, TypeVar, cast, overload

from pydantic import BaseModel, ValidationError

from balsam_exec.api.binding import Client, default_client
from balsam_exec.client.lookups import explain
from balsam_exec.client.service import Service
from balsam_exec.model import errors
from balsam_exec.model.base import Page
from balsam_exec.model.errors import InvalidRequest
from balsam_exec.model.queries import Query

T = TypeVar("T")


@dataclass(frozen=True)
class Routes:
    """How a resource is reached: methods of `Service`, and the models of what they take. None: there is no such."""

    query: type[Query]
    page: Callable[[Service, Query], Page[Any]]
    get: Callable[[Service, int], BaseModel] | None = None
    spec: type[BaseModel] | None = None
    create: Callable[[Service, Any], BaseModel] | None = None
    patch_model: type[BaseModel] | None = None
    patch: Callable[[Service, int, Any], BaseModel] | None = None
    delete: Callable[[Service, int], None] | None = None


class Field(Generic[T]):
    """A typed attribute of a resource; assigned values, and changes inside dicts and lists, are sent by `save()`."""

    def __init__(self, *, read_only: bool = False, copied: Callable[[Any], Any] = deepcopy) -> None:
        """`copied` makes the resource's own copy of a dict or list that is assigned."""
        self.read_only = read_only
        self.copied = copied

    def __set_name__(self, owner: type[Resource], name: str) -> None:
        self.name = name

    @overload
    def __get__(self, obj: None, owner: type[Resource]) -> Self: ...
    @overload
    def __get__(self, obj: Resource, owner: type[Resource]) -> T: ...
    def __get__(self, obj: Resource | None, owner: type[Resource]) -> Self | T:
        return self if obj is None else cast(T, obj._value(self.name))

    def __set__(self, obj: Resource, value: T) -> None:
        if self.read_only:
            raise AttributeError(f"{type(obj).__name__}.{self.name} is set by the service")
        obj._values[self.name] = self.copied(value) if isinstance(value, (dict, list)) else value


class Resource:
    """Something the service keeps.

    Its fields are as last seen (`refresh_from_db()` looks again), under what was changed here since (`save()` does it).
    Unlike in Balsam 0.5 a change inside a field, such as `job.data["x"] = 1`, is a change too and is never lost.
    """

    __slots__ = ("_client", "_record", "_values")

    routes: ClassVar[Routes]
    DoesNotExist: ClassVar[type[errors.DoesNotExist]]
    MultipleObjectsReturned: ClassVar[type[errors.MultipleObjectsReturned]]
    _bound: ClassVar[Client | None] = None
    #: What its repr shows.
    _shown: ClassVar[tuple[str, ...]] = ("id",)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "_bound" not in cls.__dict__:  # a resource of its own, not the same one bound to a client
            cls.DoesNotExist = type("DoesNotExist", (errors.DoesNotExist,), {"__module__": cls.__module__})
            cls.MultipleObjectsReturned = type(
                "MultipleObjectsReturned", (errors.MultipleObjectsReturned,), {"__module__": cls.__module__}
            )

    def __init__(self, **values: Any) -> None:
        self._writable("create", self.routes.spec)
        self._client: Client | None = self._bound
        self._record: Any = None
        self._values: dict[str, Any] = {}
        for name, value in values.items():
            if not isinstance(getattr(type(self), name, None), Field):
                raise InvalidRequest(f"{type(self).__name__} has no field {name}; it has: {', '.join(self.fields())}")
            setattr(self, name, value)

    @classmethod
    def bound_to(cls, client: Client) -> type[Self]:
        """The same class for the service of `client`."""
        return type(cls.__name__, (cls,), {"_bound": client, "__slots__": (), "__module__": cls.__module__})

    @classmethod
    def client(cls) -> Client:
        """The client this class is bound to; for the classes of `balsam_exec.api` the configured one."""
        return cls._bound or default_client()

    @classmethod
    def fields(cls) -> list[str]:
        return [name for part in reversed(cls.__mro__) for name, what in vars(part).items() if isinstance(what, Field)]

    @classmethod
    def from_record(cls, client: Client, record: BaseModel) -> Self:
        found = cls.__new__(cls)
        found._client = client
        found._record = record
        found._values = {}
        return found

    # --- reading and changing

    def _value(self, name: str) -> Any:
        if name in self._values:
            return self._values[name]
        if self._record is None:
            value = self._default(name)
        else:
            value = getattr(self._record, name)
        if isinstance(value, (dict, list)):
            # The caller may change it in place: hand out a copy, to be compared with what was loaded.
            value = self._values[name] = deepcopy(value)
        return value

    def _default(self, name: str) -> Any:
        field = self.routes.spec.model_fields.get(name) if self.routes.spec else None
        return None if field is None or field.is_required() else field.get_default(call_default_factory=True)

    def _changes(self) -> dict[str, Any]:
        """What is not as it was last seen."""
        loaded = self._record
        return {name: value for name, value in self._values.items() if value != getattr(loaded, name)}

    @property
    def _own_client(self) -> Client:
        if self._client is None:
            self._client = default_client()
        return self._client

    def _saved_id(self) -> int:
        if self._record is None:
            raise InvalidRequest(f"this {type(self).__name__} was not saved yet: call save() first")
        return cast(int, self._record.id)

    # --- the service

    def save(self) -> None:
        """Create it, or send what was changed (also inside dicts and lists)."""
        service = self._own_client.service
        if self._record is None:
            spec = self._validated(self._writable("create", self.routes.spec), self._values)
            create = self.routes.create
            assert create is not None
            self._loaded(create(service, spec))
        elif changes := self._changes():
            patch = self.routes.patch
            model = self.patch_model_of(changes)
            assert patch is not None
            self._loaded(patch(service, self._saved_id(), model))

    def delete(self) -> None:
        if self.routes.delete is None:
            raise InvalidRequest(f"a {type(self).__name__} cannot be deleted")
        self.routes.delete(self._own_client.service, self._saved_id())

    def refresh_from_db(self) -> None:
        """Look again; changes that were not saved are forgotten."""
        if self.routes.get is None:
            raise InvalidRequest(f"a {type(self).__name__} does not change")
        self._loaded(self.routes.get(self._own_client.service, self._saved_id()))

    def _loaded(self, record: BaseModel, keep: Mapping[str, Any] | None = None) -> None:
        """Take what the service says; of the changes only `keep` stays. Dicts and lists handed out before live on."""
        handed_out, self._values = self._values, dict(keep or {})
        self._record = record
        for name, value in handed_out.items():
            if isinstance(value, (dict, list)) and name not in self._values:
                _become(value, getattr(record, name))
                self._values[name] = value

    @classmethod
    def patch_model_of(cls, changes: Mapping[str, Any]) -> BaseModel:
        """The patch that makes these changes. Raises InvalidRequest for what cannot change."""
        kind = cls._writable("change", cls.routes.patch_model)
        fixed = sorted(set(changes) - set(kind.model_fields))
        if fixed:
            may = ", ".join(sorted(kind.model_fields))
            raise InvalidRequest(f"{', '.join(fixed)} of a saved {cls.__name__} cannot change; these can: {may}")
        if empty := sorted(name for name, value in changes.items() if value is None):
            raise InvalidRequest(f"{', '.join(empty)} of a {cls.__name__} cannot be None")
        return cls._validated(kind, changes)

    @classmethod
    def _writable(cls, what: str, kind: type[BaseModel] | None) -> type[BaseModel]:
        if kind is None:
            raise InvalidRequest(f"you cannot {what} a {cls.__name__}: the service makes them")
        return kind

    @classmethod
    def _validated(cls, kind: type[BaseModel], values: Mapping[str, Any]) -> BaseModel:
        try:
            return kind.model_validate(values)
        except ValidationError as error:
            raise InvalidRequest(f"{cls.__name__}: {explain(error)}") from None

    # --- the prompt

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"

    def __rich_repr__(self) -> Iterator[tuple[str, Any]]:
        for name in self._shown:
            value = self._value(name) if self._record is not None or name in self._values else None
            if value is not None and value not in ({}, [], ""):
                yield name, str(value) if isinstance(value, str) else value

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Resource) or self.routes is not other.routes or self._record is None:
            return NotImplemented
        same = other._record is not None and self._record.id == other._record.id
        return same and self._own_client.service == other._own_client.service

    def __hash__(self) -> int:
        # By the id, so only once it is saved: a hash must not change.
        return hash((type(self).routes.query, self._saved_id()))


def _become(mine: dict[str, Any] | list[Any], new: Any) -> None:
    """Give a dict or list that somebody may hold another content."""
    if mine == new:
        return
    mine.clear()
    if isinstance(mine, dict):
        mine.update(deepcopy(new))
    else:
        mine.extend(deepcopy(new))
