"""An allocation on a site's batch scheduler (seed 003 `submit_allocation`)."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from balsam_exec.model.base import Id, Json, Record, Tags, Timestamp, Wire
from balsam_exec.model.states import BatchJobState

JobMode = Literal["mpi", "serial"]
#: Who asked for an allocation.
Origin = Literal["user", "elastic_queue", "queue_maintainer"]


class Partition(Wire):
    """One of several launchers that share an allocation."""

    job_mode: JobMode = "mpi"
    num_nodes: int = Field(ge=1)
    filter_tags: Tags = {}


class BatchJobSpec(Wire):
    """An allocation to request."""

    site_id: Id
    num_nodes: int = Field(ge=1, le=1_000_000)
    wall_time_min: int = Field(ge=1, le=10_000_000)
    job_mode: JobMode = "mpi"
    queue: str = Field(default="local", max_length=200)
    project: str = Field(default="local", max_length=200)
    optional_params: dict[str, str] = {}
    filter_tags: Tags = {}  #: run only jobs that carry all of these
    partitions: list[Partition] = []
    idle_ttl_sec: int | None = Field(default=None, ge=0)  #: end after so long without work; None: the site's setting
    origin: Origin = "user"

    @model_validator(mode="after")
    def _partitions_fit(self) -> Self:
        if self.partitions and sum(p.num_nodes for p in self.partitions) > self.num_nodes:
            raise ValueError("the partitions need more nodes than the allocation has")
        return self


class BatchJobPatch(Wire):
    state: BatchJobState | None = None
    scheduler_id: str | None = Field(default=None, max_length=200)
    status_info: Json | None = None
    start_time: Timestamp | None = None
    end_time: Timestamp | None = None


class BatchJobRecord(Record, BatchJobSpec):
    id: Id
    state: BatchJobState
    scheduler_id: str | None = None
    status_info: Json = {}  #: why it ended or could not be submitted
    start_time: Timestamp | None = None
    end_time: Timestamp | None = None
    created: Timestamp
