"""An allocation on a site's batch scheduler (seed 003 `submit_allocation`)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from balsam_exec.model.base import Id, Json, Record, Tags, Timestamp, Wire
from balsam_exec.model.states import BatchJobState

JobMode = Literal["mpi", "serial"]
#: Who asked for an allocation.
Origin = Literal["user", "elastic_queue", "queue_maintainer"]

#: Of an AllocationRequest what the scheduler is told; how launchers share the nodes is no business of it.
TOLD = ("num_nodes", "wall_time_min", "queue", "project", "optional_params")


class Partition(Wire):
    """One of several launchers that share an allocation."""

    job_mode: JobMode = "mpi"
    num_nodes: int = Field(ge=1)
    filter_tags: Tags = {}


class AllocationRequest(Wire):
    """What is asked of the batch scheduler, and the partitions that fit into it."""

    num_nodes: int = Field(ge=1, le=1_000_000)
    wall_time_min: int = Field(ge=1, le=10_000_000)
    queue: str = Field(default="local", max_length=200)
    project: str = Field(default="local", max_length=200)
    optional_params: dict[str, str] = {}
    partitions: list[Partition] = []

    @field_validator("partitions")
    @classmethod
    def _fit(cls, partitions: list[Partition], info: ValidationInfo) -> list[Partition]:
        needed, nodes = sum(partition.num_nodes for partition in partitions), info.data.get("num_nodes")
        if nodes is not None and needed > nodes:
            raise ValueError(f"they have {needed} nodes together, and num_nodes is {nodes}")
        return partitions

    @property
    def request(self) -> AllocationRequest:
        """Itself alone, where it is part of something larger."""
        return AllocationRequest.model_construct(
            **{name: getattr(self, name) for name in AllocationRequest.model_fields}
        )

    def changes(self, wanted: AllocationRequest) -> list[str]:
        """The fields that the scheduler has to be told of for `wanted` instead of this."""
        return [name for name in TOLD if getattr(self, name) != getattr(wanted, name)]

    def stays(self, wanted: AllocationRequest) -> str:
        """In words that this holds, and not `wanted`."""
        kept = [(name, getattr(self, name), getattr(wanted, name)) for name in self.changes(wanted)]
        return ", ".join(f"{name} stays {before}, not {after}" for name, before, after in kept)


class BatchJobSpec(AllocationRequest):
    """An allocation to request."""

    site_id: Id
    job_mode: JobMode = "mpi"
    filter_tags: Tags = {}  #: run only jobs that carry all of these
    idle_ttl_sec: int | None = Field(default=None, ge=0)  #: end after so long without work; None: the site's setting
    origin: Origin = "user"


class BatchJobPatch(Wire):
    """Changes to a batch job. What was asked for changes only until it runs; the rest is for its site's agent, but
    for the state `pending_deletion`, which has it cancelled."""

    num_nodes: int | None = Field(default=None, ge=1, le=1_000_000)
    wall_time_min: int | None = Field(default=None, ge=1, le=10_000_000)
    queue: str | None = Field(default=None, max_length=200)
    project: str | None = Field(default=None, max_length=200)
    optional_params: dict[str, str] | None = None
    partitions: list[Partition] | None = None
    job_mode: JobMode | None = None
    filter_tags: Tags | None = None
    idle_ttl_sec: int | None = Field(default=None, ge=0)

    state: BatchJobState | None = None
    scheduler_id: str | None = Field(default=None, max_length=200)
    status_info: Json | None = None
    start_time: Timestamp | None = None
    end_time: Timestamp | None = None
    submitted: AllocationRequest | None = None  #: what the scheduler has now
    refused: AllocationRequest | None = None  #: what it did not want instead: the record goes back to `submitted`


class BatchJobRecord(Record, BatchJobSpec):
    id: Id
    state: BatchJobState
    scheduler_id: str | None = None
    #: `info`: why it waits or how it ended; `error`: why it could not be submitted; `exit_code`; `cancelled`;
    #: `refused`: why a change did not come about.
    status_info: Json = {}
    start_time: Timestamp | None = None
    end_time: Timestamp | None = None
    created: Timestamp
    submitted: AllocationRequest | None = None  #: what the scheduler was told last; None: nothing yet
