"""What a site lets allocations ask of its batch scheduler. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pydantic import Field

from balsam_exec.model.base import Name, Wire
from balsam_exec.model.batch_jobs import AllocationRequest


class QueueLimits(Wire):
    """What may be asked of one queue; None: anything that the scheduler takes."""

    max_nodes: int | None = Field(default=None, ge=1)  #: of an allocation
    max_wall_time_min: int | None = Field(default=None, ge=1)  #: of an allocation
    max_queued_jobs: int | None = Field(default=None, ge=1)  #: allocations there that wait or run


class Allowed(Wire):
    """What allocations at a site may ask for. What is empty allows anything."""

    allowed_queues: dict[Name, QueueLimits] = {}
    allowed_projects: list[Name] = []
    #: The optional_params that may be given -> what those have that do not give them; None: nothing.
    optional_batch_job_params: dict[Name, str | None] = {}

    def completed(self, params: dict[str, str]) -> dict[str, str]:
        """optional_params with the defaults of the site."""
        defaults = {name: value for name, value in self.optional_batch_job_params.items() if value is not None}
        return {**defaults, **params}

    def max_queued_jobs(self, queue: str) -> int | None:
        """How many allocations the queue may have that wait or run; None: any number."""
        limits = self.allowed_queues.get(queue)
        return None if limits is None else limits.max_queued_jobs

    def problems(self, request: AllocationRequest, others: int = 0) -> list[str]:
        """Why this may not be asked for, naming what may; empty if it may. `others`: the allocations that its queue has
        already."""
        found = list(self._of_queue(request, others))
        if self.allowed_projects and request.project not in self.allowed_projects:
            found.append(f"project {request.project!r} is not among its projects: {_listed(self.allowed_projects)}")
        known = self.optional_batch_job_params
        if known and (strange := sorted(set(request.optional_params) - set(known))):
            found.append(f"optional_params {_listed(strange)} are not among those it takes: {_listed(known)}")
        return found

    def _of_queue(self, request: AllocationRequest, others: int) -> Iterator[str]:
        queue = request.queue
        if not self.allowed_queues:
            return
        limits = self.allowed_queues.get(queue)
        if limits is None:
            yield f"queue {queue!r} is not among its queues: {_listed(self.allowed_queues)}"
            return
        for name, value, most in (
            ("num_nodes", request.num_nodes, limits.max_nodes),
            ("wall_time_min", request.wall_time_min, limits.max_wall_time_min),
        ):
            if most is not None and value > most:
                yield f"{name} is {value}, and queue {queue!r} gives {most} at most"
        if limits.max_queued_jobs is not None and others >= limits.max_queued_jobs:
            yield (
                f"queue {queue!r} has {others} of its batch jobs, waiting or running, and the limit is "
                f"{limits.max_queued_jobs}: wait for one to end, or cancel one"
            )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
