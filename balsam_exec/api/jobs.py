"""Jobs: runs of apps, as objects that behave like futures (seed 001 "Jobs")."""

from __future__ import annotations

import json
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypedDict, Unpack, cast

from pydantic import BaseModel

from balsam_exec.api import outcome
from balsam_exec.api.apps import encoded_input
from balsam_exec.api.binding import Client, default_client
from balsam_exec.api.queryset import Objects, QuerySet
from balsam_exec.api.resource import Field, Resource, Routes
from balsam_exec.apps.definition import command_input, python_input, python_parameters
from balsam_exec.client.service import Service
from balsam_exec.model.apps import AppRecord
from balsam_exec.model.base import MAX_BULK, Json
from balsam_exec.model.errors import DoesNotExist, InvalidRequest
from balsam_exec.model.explain import Explanation
from balsam_exec.model.files import DEFAULT_CHUNK
from balsam_exec.model.jobs import JobBulkPatch, JobPatch, JobRecord, JobSpec, Result
from balsam_exec.model.queries import JobQuery
from balsam_exec.model.states import TERMINAL, JobState


class JobFields(TypedDict, total=False):
    """What `Job()` and `submit` take besides workdir and app."""

    parameters: Mapping[str, Any]
    tags: Mapping[str, str]
    data: Json
    parent_ids: Sequence[int | Job]
    on_parent_failure: Literal["fail", "run", "hold"]
    input_files: Sequence[str]
    transfers: Mapping[str, str]
    num_nodes: int
    ranks_per_node: int
    threads_per_rank: int
    threads_per_core: int
    gpus_per_rank: float
    node_packing_count: int
    wall_time_min: int
    launch_params: Mapping[str, str]
    stdout: str
    stderr: str


JOB_FIELDS = frozenset(JobFields.__annotations__)


#: Fields that whoever made a record, without `created`, may have left for the service to say.
_ASKED_FOR = frozenset({"created", "last_update", "parent_ids", "transfers", "input_files", "root_cause"})


class WaitResult(NamedTuple):
    done: list[Job]
    not_done: list[Job]


class JobQuerySet(QuerySet["Job"]):
    """Some jobs. See `QuerySet`; jobs are counted, changed and deleted in one request however many they are."""

    def count(self) -> int:
        if self._found is not None or self._nothing:
            return len(self._found or ())
        total = self._client().service.count_jobs(self._query())
        end = total if self._stop is None else min(total, self._stop)
        return max(0, end - self._start)

    def states(self) -> dict[JobState, int]:
        """How many of these are in each state."""
        self._whole("states")
        counted = [] if self._nothing else self._client().service.job_states(self._query())
        return {item.state: item.count for item in counted}

    def update(self, **changes: Any) -> int:
        """Change all of these, or none if one cannot be changed so; how many there were."""
        self._whole("update")
        if "parameters" in changes:
            raise InvalidRequest("parameters are changed job by job: set job.parameters, then Job.objects.bulk_update")
        if "parent_ids" in changes:
            changes["parent_ids"] = _ids_of(changes["parent_ids"])
        patch = cast(JobPatch, self._kind.patch_model_of(changes))
        return 0 if self._nothing else self._client().service.update_jobs(self._query(), patch)

    def delete(self) -> int:
        """Delete all of these; how many there were. Without any filter it is refused."""
        self._whole("delete")
        return 0 if self._nothing else self._client().service.delete_jobs(self._query())

    def kill(self) -> int:
        """Kill all of these that have not ended, as `Job.kill` does; how many these were. Without any filter it is
        refused."""
        self._whole("kill")
        if self._nothing:
            return 0
        found = self._client().service.kill_matching(self._query())
        return len(found.killed) + len(found.ordered)

    def bulk_create(self, jobs: Iterable[Job], key: str | None = None) -> list[Job]:
        """Save new jobs in as few requests as possible. A parent may be among them. Nothing is sent if one is wrong.

        The same jobs under the same `key` are made once: after a crash or a lost connection, do it again with the key.
        Raises InvalidRequest, ParameterError, PayloadError, TooLarge.
        """
        listed = list(jobs)
        client = self._client()
        app = cache(client.app)  # each app is looked up once, and never remembered for longer than this
        drafts = {id(job): (job, job._draft(app)) for job in listed}
        key = key or uuid.uuid4().hex
        for number, generation in enumerate(_generations(listed)):
            _create(client, [drafts[id(job)] for job in generation], f"{key}-{number}")
        return listed

    def bulk_update(self, jobs: Iterable[Job]) -> int:
        """Send what was changed in each of these, all or nothing; how many had changes."""
        changed = [(job, changes) for job in jobs if (changes := job._changes())]
        patches = [JobBulkPatch(id=job._saved_id(), **job._patch(changes).model_dump()) for job, changes in changed]
        if len(patches) > MAX_BULK:
            raise InvalidRequest(f"{len(patches)} jobs to update at once; the limit is {MAX_BULK}")
        if patches:
            self._client().service.patch_jobs(patches)
        for (job, changes), patch in zip(changed, patches, strict=True):
            job._loaded(job._record.model_copy(update={name: deepcopy(getattr(patch, name)) for name in changes}))
        return len(patches)

    def wait(
        self,
        jobs: Iterable[Job],
        timeout: float | None = None,
        return_when: Literal["ALL_COMPLETED", "FIRST_COMPLETED", "FIRST_EXCEPTION"] = "ALL_COMPLETED",
    ) -> WaitResult:
        """Wait as `concurrent.futures.wait` does: (done, not_done) also when the time is up; an end is JOB_FINISHED,
        FAILED or USER_KILLED, and FAILED is the exception."""
        if return_when not in ("ALL_COMPLETED", "FIRST_COMPLETED", "FIRST_EXCEPTION"):
            raise InvalidRequest(f"return_when is ALL_COMPLETED, FIRST_COMPLETED or FIRST_EXCEPTION: {return_when!r}")
        listed = list(jobs)
        done: set[int] = set()
        try:
            for group in outcome.ended(listed, timeout):
                done.update(map(id, group))
                failed = any(job.state is JobState.FAILED for job in group)
                if return_when == "FIRST_COMPLETED" or (return_when == "FIRST_EXCEPTION" and failed):
                    break
        except TimeoutError:
            pass  # what is not done says so
        over = outcome.grouped([job for job in listed if id(job) in done])
        return WaitResult(over, [job for job in listed if id(job) not in done])

    def as_completed(self, jobs: Iterable[Job], timeout: float | None = None) -> Iterator[Job]:
        """The jobs in the order in which they end. Raises TimeoutError when some have not after `timeout` seconds."""
        for group in outcome.ended(list(jobs), timeout):
            yield from group

    def _lookup(self, client: Client, name: str, value: Any) -> tuple[str, Any]:
        if name in ("parent_id", "parent_ids", "child_id", "child_ids", "id"):
            many = value if isinstance(value, (list, tuple, set, frozenset, QuerySet)) else [value]
            return name.removesuffix("s"), [getattr(one, "id", one) for one in many]
        if name in ("app", "app_id"):
            many = value if isinstance(value, (list, tuple, set, frozenset)) else [value]
            return "app_id", [one if isinstance(one, int) else client.app(one).id for one in many]
        return super()._lookup(client, name, value)


class Job(Resource):
    """One run of an app.

        job = Job(workdir="test/1", app_id=Sleeper, parameters={"sleeptime": 3}, tags={"run": "a"})
        job.save()
        job.result(timeout=60)

    `app_id` takes an app's class, name or id; a name is looked up at `site_name` (a name, id or Site). `parent_ids`
    takes jobs or their ids. Everything else is a field of `JobSpec`.
    """

    __slots__ = ("_app", "_arguments", "_group", "_result", "_site", "state_data")
    _shown = ("id", "app_id", "state", "workdir", "tags", "return_code")
    routes = Routes(
        query=JobQuery,
        page=Service.jobs,
        get=Service.job,
        spec=JobSpec,
        patch_model=JobPatch,
        patch=Service.patch_job,
        delete=Service.delete_job,
    )
    objects: ClassVar[Objects[JobQuerySet]] = Objects(JobQuerySet)

    id: Field[int] = Field(read_only=True)
    app_id: Field[Any] = Field()
    site_id: Field[int] = Field(read_only=True)
    workdir: Field[str] = Field()
    tags: Field[dict[str, str]] = Field()
    data: Field[Json] = Field()
    #: What the app is run with, by name; for Python apps decoded.
    parameters: Field[dict[str, Any]] = Field(copied=dict)
    parent_ids: Field[list[Any]] = Field(copied=list)
    #: What becomes of it when a parent fails or is killed: "fail" (it fails too), "run" (it runs all the same), "hold".
    on_parent_failure: Field[str] = Field()
    #: Patterns of files of its parents' workdirs, copied to its own before `preprocess`.
    input_files: Field[list[str]] = Field()
    #: Slot -> "location:path".
    transfers: Field[dict[str, str]] = Field()
    num_nodes: Field[int] = Field()
    ranks_per_node: Field[int] = Field()
    threads_per_rank: Field[int] = Field()
    threads_per_core: Field[int] = Field()
    gpus_per_rank: Field[float] = Field()
    node_packing_count: Field[int] = Field()
    wall_time_min: Field[int] = Field()
    launch_params: Field[dict[str, str]] = Field()
    #: The files of the workdir that its output is appended to; stderr "" goes together with stdout.
    stdout: Field[str] = Field()
    stderr: Field[str] = Field()
    batch_job_id: Field[int | None] = Field(read_only=True)
    return_code: Field[int | None] = Field(read_only=True)
    #: How often a launcher has run it.
    num_runs: Field[int] = Field(read_only=True)
    #: Where it failed because a parent did: the job that failed first.
    root_cause: Field[int | None] = Field(read_only=True)
    created: Field[datetime] = Field(read_only=True)
    last_update: Field[datetime] = Field(read_only=True)

    def __init__(
        self,
        workdir: str,
        app_id: Any = None,
        site_name: Any = None,
        *,
        app_name: str | None = None,
        **fields: Unpack[JobFields],
    ) -> None:
        if (app_id is None) == (app_name is None):
            raise InvalidRequest("which app? Give app_id (an app's class, name or id)")
        self._begin(app_id, site_name)
        super().__init__(workdir=workdir, app_id=app_name if app_id is None else app_id, **fields)

    @classmethod
    def from_record(cls, client: Client, record: BaseModel) -> Job:
        job = super().from_record(client, record)
        job._begin(None, None)
        return job

    def _begin(self, app: Any, site: Any) -> None:
        self._app = app if isinstance(app, type) else None  # the class, where it is at hand
        self._site = site  # where to look for an app that is given by name
        self._result: Result | None = None
        self._group: list[Job] = [self]  # those that ended with it, whose results are asked for together
        self._arguments: bytes | None = None  # the parameters that were handed out, to see whether they were changed
        #: Goes into the event of the next change of state; saved with it.
        self.state_data: Json | None = None

    # --- the future

    def done(self) -> bool:
        """Whether it has ended; asks the service until it has."""
        if self.state not in TERMINAL:
            self._seen(self._own_client.service.job(self._saved_id()))
        return self.state in TERMINAL

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the end and give what `run` returned (None for a command).

        Raises the app's own exception, its `__cause__` the remote traceback; JobFailed (WorkerDied, JobTimeout) with
        exit code and the end of the output; JobCancelled if it was killed; TimeoutError after `timeout` seconds.
        """
        for _ in outcome.ended([self], timeout):
            pass
        return outcome.value_of(self)

    def result_nowait(self) -> Any:
        """As `result`. Raises TimeoutError if it has not ended yet."""
        if not self.done():
            raise TimeoutError(f"job {self.id} has not ended: it is {self.state}")
        return outcome.value_of(self)

    def kill(self) -> None:
        """Kill it, unless it has ended; again it does no harm. Raises DoesNotExist.

        What waits is USER_KILLED at once, and never runs. All processes of what runs are told to end (SIGTERM, a moment
        later SIGKILL); it is USER_KILLED when nothing is left of them, unless it ended before. `result` waits.
        """
        job_id = self._saved_id()
        found = self._own_client.service.kill_jobs([job_id])
        if job_id not in (*found.killed, *found.ordered, *found.over):
            raise DoesNotExist(f"there is no job {job_id} (any more)")
        if job_id in found.killed:
            self._seen(self._own_client.service.job(job_id))

    # --- the rest

    def explain(self) -> Explanation:
        """Why it is in its state as of now: what it waits for, where it runs, how it ended.

        `print(job.explain())` is a sentence; `.reasons` are what holds, each with a `code`, a text and its numbers, the
        most telling first.
        """
        return self._own_client.service.explain_job(self._saved_id())

    @property
    def state(self) -> JobState:
        """Where it stands as far as was seen; assign a state and `save()` to move it there."""
        return JobState.CREATED if self._record is None else JobState(self._values.get("state", self._record.state))

    @state.setter
    def state(self, value: JobState | str) -> None:
        if self._record is None:
            raise InvalidRequest("save the job first; then its state can be changed")
        if value not in set(JobState):
            raise InvalidRequest(f"{value!r} is not a state; possible: {', '.join(JobState)}")
        self._values["state"] = JobState(value)

    def parent_query(self) -> JobQuerySet:
        """The jobs that it waits or has waited for."""
        return self._own_client.Job.objects.filter(child_id=self._saved_id())

    def child_query(self) -> JobQuerySet:
        """The jobs that wait or have waited for it."""
        return self._own_client.Job.objects.filter(parent_id=self._saved_id())

    def resolve_workdir(self, path: str | Path) -> Path:
        """Its working directory, where `path` is its site's data directory."""
        return Path(path) / self.workdir

    def read_file(self, path: str = "", *, offset: int = 0, length: int = DEFAULT_CHUNK) -> bytes:
        """At most `length` bytes (up to 1 MiB) of a file of its workdir, by default of its stdout, wherever it ran.

        A negative `offset` counts from the end. Raises NotFound for a file that is not there (yet), SiteUnreachable if
        the agent of a site on another machine does not answer.
        """
        self._saved_id()
        return self._own_client.files.read(self._record, path, offset=offset, length=length).data

    def save(self) -> None:
        if self._record is None:
            self._own_client.Job.objects.bulk_create([self])
        elif changes := self._changes():
            self._loaded(self._own_client.service.patch_job(self._saved_id(), self._patch(changes)))

    # --- insides

    def _value(self, name: str) -> Any:
        record = self._record
        if record is not None and name not in self._values:
            if name == "parameters" and record.arguments is not None:
                return self._decoded()
            if name in _ASKED_FOR and record.created is None and getattr(record, name) is None:
                self._seen(self._own_client.service.job(record.id))
        return super()._value(name)

    def _decoded(self) -> dict[str, Any]:
        """The arguments of a Python app by name; kept, so that changes in them are seen."""
        run = getattr(self._app, "run", None)
        found = self._values["parameters"] = python_parameters(self._record.arguments, run)
        self._arguments = python_input(f"job {self.id}", run, found).arguments
        return found

    def _changes(self) -> dict[str, Any]:
        if self._record is None:
            raise InvalidRequest("this job was not saved yet: call save() or Job.objects.bulk_create first")
        changes = super()._changes()
        if "parent_ids" in changes:
            changes["parent_ids"] = _ids_of(changes["parent_ids"])
            if changes["parent_ids"] == self._record.parent_ids:
                del changes["parent_ids"]
        if "parameters" in self._values:
            changes.pop("parameters", None)
            changes.update(self._changed_input(self._values["parameters"]))
        return changes

    def _changed_input(self, given: Mapping[str, Any]) -> dict[str, Any]:
        record = self._record
        if record.arguments is not None:
            arguments = python_input(f"job {record.id}", getattr(self._app, "run", None), given).arguments
            self._check_size(arguments)
            return {} if arguments == self._arguments else {"arguments": arguments}
        if given == record.parameters:
            return {}
        app = self._own_client.app(record.app_id)
        return {"parameters": command_input(app.name, app.parameters, given).parameters}

    def _check_size(self, arguments: bytes | None) -> None:
        if arguments is not None:
            self._own_client.service.check_entity(arguments, f"the arguments of a job in {self.workdir}")

    def _patch(self, changes: Mapping[str, Any]) -> JobPatch:
        said = {} if self.state_data is None else {"state_data": self.state_data}
        return cast(JobPatch, self.patch_model_of({**changes, **said}))

    def _loaded(self, record: BaseModel, keep: Mapping[str, Any] | None = None) -> None:
        if self._record is None or self._record.state != cast(JobRecord, record).state:
            self._result, self._group = None, [self]
        self._values.pop("parameters", None)  # decoded again when they are asked for
        self.state_data = None
        super()._loaded(record, keep)

    def _seen(self, record: JobRecord) -> None:
        """Take what the service says, under the changes that were made here."""
        changed = set(self._changes()) if self._values else set()
        if "arguments" in changed:
            changed.add("parameters")
        keep = {name: value for name, value in self._values.items() if name in changed}
        said = self.state_data
        self._loaded(record, keep)
        self.state_data = said

    def _unsaved_parents(self) -> list[Job]:
        return [one for one in self._values.get("parent_ids", ()) if isinstance(one, Job) and one._record is None]

    def _draft(self, app: Any) -> tuple[JobSpec, AppRecord]:
        """All that is sent to create it, but for the parents."""
        if self._record is not None:
            raise InvalidRequest(f"job {self.id} is saved already; Job.objects.bulk_update sends changes")
        given = dict(self._values)
        ref = given.pop("app_id")
        record: AppRecord = app(ref, self._site)
        parameters, arguments = encoded_input(ref, record, given.pop("parameters", None) or {})
        self._check_size(arguments)
        _check_parents(given.pop("parent_ids", None) or ())
        given.update(app_id=record.id, parameters=parameters, arguments=arguments)
        if data := given.get("data"):
            _require_json(data)
        return cast(JobSpec, self._validated(JobSpec, given)), record


def job_of(record: JobRecord, app: type) -> Job:
    """The job of the configured service that the record tells of, with the class of its app at hand."""
    job = Job.from_record(default_client(), record)
    job._begin(app, None)
    return job


def unsaved(job: Job) -> JobPatch:
    """What was changed in a saved job since it was last seen, as `save` would send it. Raises InvalidRequest."""
    return job._patch(job._changes())


def _create(client: Client, drafts: Sequence[tuple[Job, tuple[JobSpec, AppRecord]]], key: str) -> None:
    specs = []
    for job, (spec, _) in drafts:
        parents = _ids_of(job._values.get("parent_ids", ()))
        specs.append(spec.model_copy(update={"parent_ids": parents}) if parents else spec)
    made = client.service.create_jobs(specs, key)
    for (job, (_, app)), spec, created in zip(drafts, specs, made, strict=True):
        values = {**spec.__dict__, "id": created.id, "state": created.state, "site_id": app.site_id}
        # Copies, because the caller may change his own; the clock of the service is asked for when somebody wants it.
        values.update(data=deepcopy(spec.data), parameters=deepcopy(spec.parameters), created=None, last_update=None)
        job._values.pop("parent_ids", None)
        job._client = client
        job._loaded(JobRecord.model_construct(**values))


def _generations(jobs: Sequence[Job]) -> list[list[Job]]:
    """New jobs in the order in which they can be made: those without new parents, their children, and so on."""
    among = {id(job) for job in jobs}
    missing: dict[int, int] = {}
    children: defaultdict[int, list[Job]] = defaultdict(list)
    for job in jobs:
        parents = {id(parent) for parent in job._unsaved_parents()}
        missing[id(job)] = len(parents)
        for parent in parents & among:
            children[parent].append(job)
    generations = []
    ready = [job for job in jobs if not missing[id(job)]]
    while ready:
        generations.append(ready)
        freed = []
        for child in (child for job in ready for child in children[id(job)]):
            missing[id(child)] -= 1
            if not missing[id(child)]:
                freed.append(child)
        ready = freed
    if any(missing.values()):
        raise InvalidRequest("these jobs have parents that are neither saved nor among them (or each other)")
    return generations


def _check_parents(given: Iterable[Any]) -> None:
    for parent in given:
        if not isinstance(parent, (int, Job)):
            raise InvalidRequest(f"parent_ids takes jobs and their ids, not {parent!r}")


def _ids_of(parents: Iterable[Any]) -> list[int]:
    """Raises InvalidRequest for a job that is not saved."""
    _check_parents(given := list(parents))
    return sorted({one._saved_id() if isinstance(one, Job) else one for one in given})


def _require_json(data: Json) -> None:
    try:
        json.dumps(data, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"job.data is sent as JSON, and this is not: {error}") from None
