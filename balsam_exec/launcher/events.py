"""What happens to a launcher, and what its pilot may decide to do."""

from __future__ import annotations

import math
import signal
from dataclasses import asdict, dataclass
from typing import Any

from balsam_exec.launcher.placement import Placement
from balsam_exec.model.jobs import Result
from balsam_exec.model.sessions import AcquireRequest, LeasedJob, Report, Room, SortBy
from balsam_exec.model.states import JobState

# --- what happens


@dataclass(frozen=True, slots=True)
class Arrived:
    """The acquire that was asked for is answered, with jobs or without."""

    jobs: tuple[LeasedJob, ...]
    more: bool = False  #: may come in answer to it
    again: bool = False  #: some of the jobs may have come before


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job that was started ended; `state` is RUN_DONE or RUN_ERROR, or RUN_TIMEOUT where its node was lost."""

    state: JobState
    result: Result
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ended:
    """Nothing is left of a job that was started, or it could not be started."""

    job_id: int
    outcome: Outcome
    unasked: bool = False  #: it had ended before a Kill came to it


@dataclass(frozen=True, slots=True)
class Alive:
    """The service has renewed the session. `kill`: the leases, as (job id, epoch), of all jobs whose owner wants them
    killed, as long as the service has not heard that they ended."""

    kill: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True, slots=True)
class Delivered:
    """The batch of reports under way is recorded."""


@dataclass(frozen=True, slots=True)
class Stale:
    """The batch under way is not recorded: the leases of these jobs are over."""

    job_ids: frozenset[int]


@dataclass(frozen=True, slots=True)
class Refused:
    """The batch under way is not recorded: the service found fault with it."""

    why: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Start nothing more, end what runs, and exit; `now` without grace for the jobs."""

    reason: str
    at_once: bool = False


@dataclass(frozen=True, slots=True)
class Lost:
    """The session is over."""

    reason: str


Event = Arrived | Ended | Alive | Delivered | Stale | Refused | Drain | Lost

# --- what to do


@dataclass(frozen=True, slots=True)
class Start:
    """Run the job; answer with Ended, whatever happens."""

    job: LeasedJob
    placement: Placement


@dataclass(frozen=True, slots=True)
class Kill:
    """Signal all processes of a job."""

    job_id: int
    signum: signal.Signals


@dataclass(frozen=True, slots=True)
class Acquire:
    """Ask for jobs; answer with Arrived. The fields of the same names are those of AcquireRequest."""

    max_jobs: int
    max_wall_time_min: int | None = None
    max_aggregate_nodes: float | None = None
    claims: bool = False  #: room is made for what comes; if nothing comes, the answer comes at once
    stands: bool = False  #: the jobs may come little by little
    min_nodes: int = 1
    min_wait_sec: float = 0
    wait: float = math.inf  #: at most so many seconds for the answer
    narrow: bool = False  #: only for what has a place beside what runs; then these, too
    max_nodes: int = 0
    max_gpus_per_node: float = 0
    max_cores_per_node: int | None = None
    min_packing_count: int = 1

    def request(self, room: Room, sort_by: SortBy, timeout: float) -> AcquireRequest:
        """Of a launcher with that room, which waits for an answer for so many seconds."""
        fields = room.model_dump() | asdict(self)
        for ours in ("claims", "stands", "narrow", "wait"):
            del fields[ours]
        if self.narrow:
            fields["max_gpus_per_node"] = min(room.max_gpus_per_node, self.max_gpus_per_node)
        else:
            fields |= {"max_nodes": room.max_nodes, "max_gpus_per_node": room.max_gpus_per_node}
        return AcquireRequest(**fields, sort_by=sort_by, timeout=0 if self.claims else min(timeout, self.wait))


@dataclass(frozen=True, slots=True)
class Send:
    """Report; answer with Delivered, Stale or Refused."""

    reports: tuple[Report, ...]
    widen: bool = False  #: the service is to answer the Acquire that waits


@dataclass(frozen=True, slots=True)
class StopAsking:
    """The service is to answer the Acquire that waits."""


@dataclass(frozen=True, slots=True)
class Exit:
    """All is done; `lost` if the session was over before."""

    reason: str
    lost: bool


Action = Start | Kill | Acquire | StopAsking | Send | Exit
