"""The sections of a site's settings: one for each part of the agent that has some."""

from __future__ import annotations

from abc import abstractmethod
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from balsam_exec.model.allowed import Allowed
from balsam_exec.model.base import Tags
from balsam_exec.model.batch_jobs import AllocationRequest, JobMode


class ProcessingSettings(BaseModel):
    """How the agent runs the hooks of jobs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    workers: int | None = Field(default=None, ge=1, le=1_000)  #: processes; None: one for each core, at most 4
    hook_timeout_sec: float = Field(default=600, gt=0, le=86_400)  #: after so long a hook is ended, and its job FAILED


class FileCleanerSettings(BaseModel):
    """What the agent removes when jobs have finished."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = False  #: whether what an app's `cleanup_files` name is removed from workdirs of its finished jobs


class SubmissionSettings(BaseModel):
    """What the agent puts into the allocations that it requests by itself, and when it looks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = False  #: whether it does so at all
    submit_queue: str = Field(default="local", max_length=200)  #: the scheduler's
    submit_project: str = Field(default="local", max_length=200)  #: that pays
    job_mode: JobMode = "mpi"  #: of the allocations
    optional_params: dict[str, str] = {}  #: for the scheduler
    filter_tags: Tags = {}  #: for jobs that carry all of these only
    service_period: float = Field(default=60, gt=0, le=86_400)  #: seconds between two looks, when nothing happens
    quiet_sec: float = Field(default=2, ge=0, le=3_600)  #: after something happens it lets more happen for so long

    @property
    @abstractmethod
    def _most(self) -> tuple[int, int, int]:
        """Nodes and minutes of its largest allocation, and how many it may have."""

    def problems(self, allowed: Allowed) -> list[str]:
        """What of its requests a site would refuse."""
        nodes, minutes, count = self._most
        largest = AllocationRequest(
            num_nodes=nodes,
            wall_time_min=minutes,
            queue=self.submit_queue,
            project=self.submit_project,
            optional_params=self.optional_params,
        )
        found = allowed.problems(largest)
        most = allowed.max_queued_jobs(self.submit_queue)
        if most is not None and count > most:
            found.append(f"it has up to {count} allocations, and queue {self.submit_queue!r} takes {most}")
        return found


class ElasticQueueSettings(SubmissionSettings):
    """The limits of the elastic queue."""

    min_num_nodes: int = Field(default=1, ge=1, le=1_000_000)  #: of an allocation
    max_num_nodes: int = Field(default=1, ge=1, le=1_000_000)  #: of an allocation
    max_total_nodes: int | None = Field(default=None, ge=1)  #: of all its allocations together, waiting or running
    min_wall_time_min: int = Field(default=35, ge=1, le=10_000_000)  #: of an allocation
    max_wall_time_min: int = Field(default=360, ge=1, le=10_000_000)  #: of an allocation
    #: Minutes at the end of an allocation that are not counted on for jobs, and between its end and a window's.
    wall_time_pad_min: int = Field(default=5, ge=0, le=10_000_000)
    max_queued_jobs: int = Field(default=1, ge=1, le=10_000)  #: allocations, waiting or running
    #: One that has waited for so long is taken back, and what is needed then requested anew. None: it waits.
    max_queue_wait_time_min: int | None = Field(default=None, ge=1)
    use_backfill: bool = False  #: whether nodes that are idle for a while are filled first, as far as they are known

    @property
    def _most(self) -> tuple[int, int, int]:
        return self.max_num_nodes, self.max_wall_time_min, self.max_queued_jobs

    @model_validator(mode="after")
    def _room_for_jobs(self) -> Self:
        if self.min_wall_time_min <= self.wall_time_pad_min:
            raise ValueError("wall_time_pad_min leaves no time of min_wall_time_min for jobs")
        if self.max_wall_time_min < self.min_wall_time_min:
            raise ValueError("max_wall_time_min is less than min_wall_time_min")
        if self.max_num_nodes < self.min_num_nodes:
            raise ValueError("max_num_nodes is less than min_num_nodes")
        if self.max_total_nodes is not None and self.max_total_nodes < self.min_num_nodes:
            raise ValueError("max_total_nodes is less than min_num_nodes")
        if self.use_backfill and self.submit_queue == "local":
            raise ValueError("use_backfill wants the name of a queue, submit_queue: idle nodes are those of one")
        return self


class QueueMaintainerSettings(SubmissionSettings):
    """A fixed number of allocations that are all alike."""

    num_queued_jobs: int = Field(default=1, ge=1, le=10_000)  #: allocations, waiting or running
    num_nodes: int = Field(default=1, ge=1, le=1_000_000)  #: of each
    wall_time_min: int = Field(default=60, ge=1, le=10_000_000)  #: of each

    @property
    def _most(self) -> tuple[int, int, int]:
        return self.num_nodes, self.wall_time_min, self.num_queued_jobs
