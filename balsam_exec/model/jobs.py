"""A job: one run of an app (seed 001 "Jobs"; every field of FEATURES B1)."""

from __future__ import annotations

from posixpath import normpath
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, StringConstraints, field_validator

from balsam_exec.model.base import MAX_BULK, Entity, Id, Json, Record, Tags, Timestamp, Wire
from balsam_exec.model.states import JobState, OnParentFailure

#: The file of the workdir that holds what a job prints.
STDOUT = "job.out"

#: Among the launch_params: whether the processes of a job are bound to cores of their own.
CPU_AFFINITY = "cpu_affinity"
Affinity = Literal["none", "depth"]

Positive = Annotated[int, Field(ge=1, le=1_000_000)]


class Resources(Wire):
    """What a job needs to run; shared by specs, records and leases."""

    num_nodes: Positive = 1
    ranks_per_node: Positive = 1
    threads_per_rank: Positive = 1
    threads_per_core: Positive = 1
    gpus_per_rank: float = Field(default=0, ge=0, le=1_000)
    node_packing_count: Positive = 1  #: how many such jobs may share a node
    wall_time_min: int = Field(default=0, ge=0, le=10_000_000)  #: 0: unknown
    #: Extra options for the MPI launcher; and "cpu_affinity", "none" or "depth".
    launch_params: dict[str, str] = Field(default_factory=dict)

    @property
    def ranks(self) -> int:
        return self.num_nodes * self.ranks_per_node

    @property
    def cores_per_rank(self) -> int:
        return -(-self.threads_per_rank // self.threads_per_core)

    @property
    def cores_per_node(self) -> int:
        return self.ranks_per_node * self.cores_per_rank

    @property
    def cpu_affinity(self) -> str | None:
        """None: as the site's setting has it."""
        return self.launch_params.get(CPU_AFFINITY)

    @property
    def gpus_per_node(self) -> float:
        return self.ranks_per_node * self.gpus_per_rank


def check_launch_params(value: dict[str, str]) -> dict[str, str]:
    if value.get(CPU_AFFINITY, "none") not in get_args(Affinity):
        raise ValueError(f"{CPU_AFFINITY} is one of {', '.join(get_args(Affinity))}, not {value[CPU_AFFINITY]!r}")
    return value


def check_workdir(value: str) -> str:
    if value.startswith("/") or ".." in value.split("/"):
        raise ValueError("a workdir is relative to the site's data directory, without '..'")
    # One directory, one name, so that jobs that share it can be found by it.
    return normpath(value) if "//" in value or "/." in value or value[:2] == "./" or value[-1:] == "/" else value


def check_output(value: str) -> str:
    if value.startswith("/") or ".." in value.split("/") or value.rpartition("/")[2] == "." or value.endswith("/"):
        raise ValueError("an output file is named relative to the workdir, without '..'")
    return value


def check_glob(value: str) -> str:
    if value.startswith("/") or ".." in value.split("/"):
        raise ValueError("a pattern of input files is relative to the workdir of each parent, without '..'")
    return value


#: Files of the workdirs of a job's parents, such as "*.out" or "results/**/*.h5".
InputFiles = Annotated[
    list[Annotated[str, StringConstraints(min_length=1, max_length=1000), AfterValidator(check_glob)]],
    Field(max_length=1000),
]
#: The name of a file of the workdir that a job writes.
OutputFile = Annotated[str, StringConstraints(max_length=1000), AfterValidator(check_output)]


class JobSpec(Resources):
    """A job to create. Command apps take `parameters`, Python apps `arguments` (serialized by the client)."""

    app_id: Id
    workdir: Annotated[str, StringConstraints(min_length=1, max_length=2000)]
    tags: Tags = Field(default_factory=dict)
    data: Json = Field(default_factory=dict)
    parameters: dict[str, Any] = Field(default_factory=dict)
    arguments: Entity | None = None
    parent_ids: list[Id] = Field(default_factory=list)
    on_parent_failure: OnParentFailure = OnParentFailure.FAIL
    #: Copied from the workdirs of the parents before `preprocess`.
    input_files: InputFiles = Field(default_factory=list)
    transfers: dict[str, str] = Field(default_factory=dict)  #: slot -> "location:path"
    stdout: Annotated[OutputFile, Field(min_length=1)] = STDOUT  #: a file of the workdir
    stderr: OutputFile = ""  #: "": together with stdout

    _workdir = field_validator("workdir")(check_workdir)
    _launch_params = field_validator("launch_params")(check_launch_params)


class JobCreated(Record):
    """The answer to creating a job: what the service decided, not what the caller already has."""

    id: Id
    state: JobState


class JobPatch(Wire):
    """Fields to change; None leaves a field as it is. Only `tags`, `data` and `state` may change while a job runs."""

    state: JobState | None = None
    state_data: Json | None = None  #: goes into the event of the state change
    workdir: Annotated[str, StringConstraints(min_length=1, max_length=2000)] | None = None
    tags: Tags | None = None
    data: Json | None = None
    parameters: dict[str, Any] | None = None
    arguments: Entity | None = None
    parent_ids: list[Id] | None = None  #: until it starts, and when it has ended
    on_parent_failure: OnParentFailure | None = None
    input_files: InputFiles | None = None
    stdout: Annotated[OutputFile, Field(min_length=1)] | None = None
    stderr: OutputFile | None = None
    num_nodes: Positive | None = None
    ranks_per_node: Positive | None = None
    threads_per_rank: Positive | None = None
    threads_per_core: Positive | None = None
    gpus_per_rank: float | None = Field(default=None, ge=0, le=1_000)
    node_packing_count: Positive | None = None
    wall_time_min: int | None = Field(default=None, ge=0, le=10_000_000)
    launch_params: dict[str, str] | None = None

    @field_validator("workdir")
    @classmethod
    def _workdir(cls, value: str | None) -> str | None:
        return None if value is None else check_workdir(value)

    @field_validator("launch_params")
    @classmethod
    def _launch_params(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        return None if value is None else check_launch_params(value)


class JobBulkPatch(JobPatch):
    """One of a list of differing patches."""

    id: Id


class JobRecord(Record, Resources):
    id: Id
    app_id: Id
    site_id: Id
    workdir: str
    tags: Tags
    data: Json
    parameters: dict[str, Any]
    arguments: bytes | None = None
    parent_ids: list[Id] = Field(default_factory=list)
    on_parent_failure: OnParentFailure = OnParentFailure.FAIL
    input_files: list[str] = Field(default_factory=list)
    transfers: dict[str, str] = Field(default_factory=dict)
    stdout: str = STDOUT
    stderr: str = ""
    state: JobState
    batch_job_id: Id | None = None  #: the allocation that ran it last
    return_code: int | None = None
    num_runs: int = 0  #: how often a launcher has run it, the present run included
    root_cause: Id | None = None  #: it is FAILED without having run because this job ended badly: a parent, or one's
    created: Timestamp
    last_update: Timestamp


class Result(Record):
    """How a job ended: the serialized value, or the serialized exception and its traceback as text.

    `error` is what a person reads (an exit code and the tail of the output, a traceback); `exception` is set where a
    Python app raised; `reason` is "exception", "exit", "died", "timeout" or "parent" where `ok` is false.
    """

    ok: bool
    value: Entity | None = None
    exception: Entity | None = None
    error: Annotated[str, Field(max_length=100_000)] = ""
    reason: str = ""
    return_code: int | None = None


class StateCount(Record):
    state: JobState
    count: int


class CancelRequest(Wire):
    ids: list[Id] = Field(max_length=10_000)


class Cancelled(Record):
    """Those of the asked-for jobs that waited, held by no launcher, and are now USER_KILLED: they never ran."""

    job_ids: list[Id]


#: What the event of a kill says.
KILLED: Json = {"reason": "killed by its owner"}


class KillRequest(Wire):
    ids: list[Id] = Field(max_length=MAX_BULK)


class Killed(Record):
    """What came of killing jobs. The same request again gives the same, or tells how it went on."""

    killed: list[Id]  #: USER_KILLED by now
    ordered: list[Id]  #: a launcher holds them and is told: they will be USER_KILLED, or end by themselves before
    over: list[Id] = Field(default_factory=list)  #: had ended otherwise: JOB_FINISHED, FAILED
