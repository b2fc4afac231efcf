"""How a launcher holds jobs: a session with an expiry, and for each job a lease with an epoch.

The epoch of a job grows each time its lease is given or taken away, so whoever reports with an old one is refused.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from balsam_exec.model.base import MAX_BULK, Id, Json, Record, Tags, Timestamp, Wire
from balsam_exec.model.jobs import STDOUT, Resources, Result
from balsam_exec.model.states import JobState

#: Which jobs a launcher takes first: those of the fewest nodes, the longest of these first; or those that take longest,
#: of these the ones of the most nodes. Then the oldest. Only the former come in turn for certain while others arrive.
SortBy = Literal["small_first", "long_large_first"]


class Room(Wire):
    """Which jobs a launcher can take at all."""

    max_nodes: int = Field(ge=1)  #: per job
    max_gpus_per_node: float = Field(default=0, ge=0)
    serial_only: bool = False  #: only jobs of one rank on one node
    filter_tags: Tags = Field(default_factory=dict)


class SessionSpec(Wire):
    site_id: Id
    batch_job_id: Id | None = None
    ttl_sec: float = Field(default=60, ge=1, le=3600)  #: unheard of for so long, it expires and its jobs restart
    room: Room | None = None  #: what its launcher will ask for, to tell people why it does not take a job


class SessionRecord(Record):
    id: Id
    site_id: Id
    batch_job_id: Id | None = None
    expires: Timestamp
    ttl_sec: float


class Heartbeat(Wire):
    """A sign of life; waits up to `timeout` seconds for an order to kill a job that is not in `killing`."""

    timeout: float = Field(default=0, ge=0, le=60)
    killing: dict[Id, int] = Field(default={}, max_length=MAX_BULK)  #: the orders of the last answer


class SessionOrders(SessionRecord):
    """A session that has been extended, and the orders for its launcher."""

    #: Jobs to kill: id -> epoch of the lease. All that are not reported to have ended, old orders and new ones.
    kill: dict[Id, int] = Field(default_factory=dict)


class AcquireRequest(Room):
    """What a launcher has room for now. Waits up to `timeout` seconds for the first runnable job.

    The first job only has to fit by itself; more are given as long as all of them fit together.
    """

    max_jobs: int = Field(ge=1, le=MAX_BULK)
    max_aggregate_nodes: float | None = Field(default=None, ge=0)  #: the sum of num_nodes / node_packing_count
    max_cores_per_node: int | None = Field(default=None, ge=1)  #: of each job
    min_packing_count: int = Field(default=1, ge=1, le=1_000_000)  #: no more than so much of a node is free
    min_nodes: int = Field(default=1, ge=1)  #: more than 1: only jobs of so many nodes, and the oldest first
    min_wait_sec: float = Field(default=0, ge=0)  #: only jobs that nobody has taken for so long
    sort_by: SortBy = "small_first"
    max_wall_time_min: int | None = Field(default=None, ge=0)  #: time left; None: no limit
    timeout: float = Field(default=0, ge=0, le=60)


class LeasedJob(Record, Resources):
    """All that is needed to run a job. Report with this `epoch`."""

    id: Id
    epoch: int
    app_id: Id
    app_digest: str  #: the app as it is now; load it again when this differs from what is cached
    workdir: str
    tags: Tags = Field(default_factory=dict)
    data: Json = Field(default_factory=dict)
    parameters: Json = Field(default_factory=dict)
    arguments: bytes | None = None
    stdout: str = STDOUT
    stderr: str = ""
    restarted: bool = False  #: it has run before (RESTART_READY)


class Acquired(Record):
    jobs: list[LeasedJob]


class Report(Wire):
    """One thing that happened to a leased job: RUNNING, RUN_DONE, RUN_ERROR, RUN_TIMEOUT, USER_KILLED where that was
    ordered and nothing is left of the job, or `state` None: released without having been started. Several for one job
    are given in order."""

    job_id: Id
    epoch: int
    state: JobState | None
    timestamp: Timestamp  #: by the launcher's clock
    data: Json = Field(default_factory=dict)  #: into the event: return_code, error
    result: Result | None = None  #: with RUN_DONE and RUN_ERROR


class ReportBatch(Wire):
    reports: list[Report] = Field(max_length=MAX_BULK)
    widen: bool = False  #: answer the acquire of the session that waits: there is room for more than it asks for
