"""What may be asked of each resource: fields and lookups, checked alike by client and service.

On the wire a lookup is a query parameter, `field` or `field__lookup`: `?state=FAILED&num_nodes__lte=128&tags=kind:md`.
A repeated `field` matches any of its values, a repeated `tags` must match all of them ("key:value").
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from balsam_exec.model.base import DEFAULT_PAGE, MAX_PAGE, Id, Timestamp
from balsam_exec.model.events import Kind
from balsam_exec.model.states import BatchJobState, JobState
from balsam_exec.model.transfers import TransferState

ORDERED = ("lt", "lte", "gt", "gte")
TEXT = ("contains", "startswith")


class Query(BaseModel):
    """A page of a listing: `limit`, `offset` or the keyset `after` (an id; with an order by id), `ordering`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    limit: int = Field(default=DEFAULT_PAGE, ge=1, le=MAX_PAGE)
    offset: int = Field(default=0, ge=0, le=10_000_000)
    after: Id | None = None


def _query(name: str, ordering: tuple[str, ...], /, **fields: tuple[Any, tuple[str, ...]]) -> type[Query]:
    """A Query class with, for each field, the exact match (any of a list), `__ne`, and the given lookups."""
    lookups: dict[str, Any] = {}
    for field, (kind, extra) in fields.items():
        many = Annotated[list[kind], Field(default_factory=list, max_length=MAX_PAGE)]  # type: ignore[valid-type]
        lookups[field] = many
        if field != "tags":
            lookups[f"{field}__ne"] = many
        for lookup in extra:
            lookups[f"{field}__{lookup}"] = (kind | None, None)
    orders = tuple(sign + o for o in ordering for sign in ("", "-"))
    lookups["ordering"] = (Literal[orders], "id")
    return create_model(name, __base__=Query, **lookups)


SiteQuery = _query(
    "SiteQuery", ("id", "name"), id=(Id, ORDERED), name=(str, TEXT), path=(str, TEXT), hostname=(str, TEXT)
)
AppQuery = _query("AppQuery", ("id", "name"), id=(Id, ORDERED), site_id=(Id, ()), name=(str, TEXT))
JobQuery = _query(
    "JobQuery",
    ("id", "state", "created", "last_update", "num_nodes", "wall_time_min"),
    id=(Id, ORDERED),
    state=(JobState, ()),
    site_id=(Id, ()),
    app_id=(Id, ()),
    app_name=(str, TEXT),
    batch_job_id=(Id, ()),
    parent_id=(Id, ()),
    child_id=(Id, ()),
    workdir=(str, TEXT),
    tags=(str, ()),
    num_nodes=(int, ORDERED),
    ranks_per_node=(int, ORDERED),
    threads_per_rank=(int, ORDERED),
    gpus_per_rank=(float, ORDERED),
    node_packing_count=(int, ORDERED),
    wall_time_min=(int, ORDERED),
    created=(Timestamp, ORDERED),
    last_update=(Timestamp, ORDERED),
)
BatchJobQuery = _query(
    "BatchJobQuery",
    ("id", "created", "start_time", "end_time"),
    id=(Id, ORDERED),
    state=(BatchJobState, ()),
    site_id=(Id, ()),
    scheduler_id=(str, ()),
    queue=(str, ()),
    project=(str, ()),
    job_mode=(str, ()),
    num_nodes=(int, ORDERED),
    wall_time_min=(int, ORDERED),
    created=(Timestamp, ORDERED),
    start_time=(Timestamp, ORDERED),
    end_time=(Timestamp, ORDERED),
)
SessionQuery = _query("SessionQuery", ("id",), id=(Id, ORDERED), site_id=(Id, ()), batch_job_id=(Id, ()))
TransferQuery = _query(
    "TransferQuery",
    ("id",),
    id=(Id, ORDERED),
    job_id=(Id, ()),
    site_id=(Id, ()),
    state=(TransferState, ()),
    direction=(Literal["in", "out"], ()),
    task_id=(str, ()),
)
EventQuery = _query(
    "EventQuery",
    ("id", "timestamp"),
    id=(Id, ORDERED),
    kind=(Kind, ()),
    subject_id=(Id, ()),
    job_id=(Id, ()),
    site_id=(Id, ()),
    from_state=(str, ()),
    to_state=(str, ()),
    timestamp=(Timestamp, ORDERED),
    tags=(str, ()),
)


class FeedQuery(BaseModel):
    """Which events to be told of. Without a `cursor` the answer is at once the present end of the feed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    cursor: str | None = Field(default=None, max_length=100)
    timeout: float = Field(default=0, ge=0, le=60)  #: seconds to wait for the first event
    limit: int = Field(default=MAX_PAGE, ge=1, le=MAX_PAGE)
    kind: list[Kind] = []
    site_id: list[Id] = []
    to_state: list[str] = []
    subject_id: list[Id] = []
    tags: list[str] = []  #: "key:value"; of the jobs' events only those of jobs that carry all of these
    include_results: bool = False
