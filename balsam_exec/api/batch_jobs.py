"""Allocations as objects."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any, ClassVar

from balsam_exec.api.queryset import Objects, QuerySet
from balsam_exec.api.resource import Field, Resource, Routes
from balsam_exec.client.service import Service
from balsam_exec.model.base import Json
from balsam_exec.model.batch_jobs import AllocationRequest, BatchJobPatch, BatchJobSpec, JobMode, Origin, Partition
from balsam_exec.model.events import Kind
from balsam_exec.model.queries import BatchJobQuery
from balsam_exec.model.states import BATCH_JOB_ENDED, BatchJobState


class BatchJob(Resource):
    """An allocation on a site's batch scheduler, in which a launcher runs jobs (seed 003 `submit_allocation`).

    `BatchJob.objects.create(site_id=1, num_nodes=4, wall_time_min=30, queue="debug", project="mine")`; the site may
    be given by its name or object too. What its site does not allow raises NotAllowed, which says what it does.

    What was asked for can be changed, with `save()`, until it runs; then that raises Conflict. `submitted` is what the
    scheduler was told last, and `status_info["refused"]` says why it did not want a change.
    """

    __slots__ = ()
    _shown = ("id", "site_id", "state", "num_nodes", "wall_time_min", "queue", "project", "scheduler_id")
    routes = Routes(
        query=BatchJobQuery,
        page=Service.batch_jobs,
        get=Service.batch_job,
        spec=BatchJobSpec,
        create=Service.create_batch_job,
        patch_model=BatchJobPatch,
        patch=Service.patch_batch_job,
        delete=Service.delete_batch_job,
    )
    objects: ClassVar[Objects[QuerySet[BatchJob]]] = Objects(QuerySet)

    id: Field[int] = Field(read_only=True)
    site_id: Field[int] = Field()
    num_nodes: Field[int] = Field()
    wall_time_min: Field[int] = Field()
    job_mode: Field[JobMode] = Field()
    queue: Field[str] = Field()
    project: Field[str] = Field()
    optional_params: Field[dict[str, str]] = Field()
    filter_tags: Field[dict[str, str]] = Field()
    partitions: Field[list[Partition]] = Field()
    idle_ttl_sec: Field[int | None] = Field()
    state: Field[BatchJobState] = Field()
    scheduler_id: Field[str | None] = Field()
    status_info: Field[Json] = Field()
    start_time: Field[datetime | None] = Field()
    end_time: Field[datetime | None] = Field()
    created: Field[datetime] = Field(read_only=True)
    submitted: Field[AllocationRequest | None] = Field(read_only=True)
    origin: Field[Origin] = Field(read_only=True)

    def __init__(self, **values: Any) -> None:
        if "site_name" in values:
            values["site_id"] = values.pop("site_name")
        super().__init__(**values)

    def save(self) -> None:
        if self._record is None:
            self._values["site_id"] = self._own_client.site_id(self._values.get("site_id"))
        super().save()

    def cancel(self) -> None:
        """Ask the site to end it. Nothing happens if it has ended already."""
        self.refresh_from_db()
        if self.state not in BATCH_JOB_ENDED and self.state != BatchJobState.PENDING_DELETION:
            self.state = BatchJobState.PENDING_DELETION
            self.save()

    def wait(self, timeout: float | None = None) -> BatchJobState:
        """Wait until it has ended, for whatever reason (`status_info` says which). Raises TimeoutError."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._own_client.completions.watch(Kind.BATCH_JOB, [self._saved_id()]) as watch:
            self.refresh_from_db()
            while self.state not in BATCH_JOB_ENDED:
                watch.next(None if deadline is None else deadline - time.monotonic())
                self.refresh_from_db()
        return self.state
