"""`BalsamParslExecutor`: Parsl's apps as jobs of a site, its blocks as allocations."""

from __future__ import annotations

import itertools
import logging
import math
import os
import time
import uuid
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from pickle import PicklingError
from typing import TYPE_CHECKING, Any

from parsl.data_provider.staging import Staging
from parsl.executors.errors import BadStateException
from parsl.executors.high_throughput.errors import WorkerLost
from parsl.executors.status_handling import BlockProviderExecutor
from parsl.jobs.states import TERMINAL_STATES, JobState, JobStatus
from parsl.monitoring.radios.base import RadioConfig
from parsl.serialize import deserialize, serialize
from parsl.serialize.errors import DeserializationError, SerializationError
from parsl.utils import RepresentationMixin

from balsam_exec.apps.payload import dump_call_arguments, dump_function, load_result
from balsam_exec.client.config import load_service
from balsam_exec.client.lookups import build
from balsam_exec.client.service import Service
from balsam_exec.client.sites import site_id
from balsam_exec.executors.allocation import NoAllocation
from balsam_exec.executors.calls import Calls
from balsam_exec.executors.engine import Engine
from balsam_exec.executors.future import JobFuture
from balsam_exec.executors.parsl.blocks import BatchJobProvider, to_bring_back
from balsam_exec.executors.parsl.radio import DirectoryRadio
from balsam_exec.executors.parsl.resources import Request, translate
from balsam_exec.executors.parsl.worker import ParslCall, TaskRaised
from balsam_exec.executors.services import find_service, patience
from balsam_exec.model.batch_jobs import BatchJobSpec
from balsam_exec.model.errors import BalsamError, JobFailed, JobTimeout, WorkerDied
from balsam_exec.model.events import FeedEvent
from balsam_exec.model.jobs import JobSpec, Result
from balsam_exec.model.queries import JobQuery
from balsam_exec.model.states import JobState as State

if TYPE_CHECKING:
    from balsam_exec.embedded import Deployment

log = logging.getLogger(__name__)

#: The tag that every job of an executor carries; its value is the executor's name in this run.
TAG = "parsl"
#: Functions kept serialized.
_FUNCTIONS = 256
#: Parsl takes a millisecond for each task that fails. A shutdown takes it for so many seconds; what is left then stays
#: unresolved, as with Parsl's own executors.
PATIENCE_SEC = 1.0
#: Parsl warns of what is larger when serialized, in bytes.
_LARGE = 1 << 20


class TaskLost(WorkerLost, JobFailed):
    """The worker of a task died, or its block ended before the task: Parsl's `retries` decide what follows."""

    code = "task_lost"

    def __init__(self, message: str) -> None:
        JobFailed.__init__(self, message)

    def __str__(self) -> str:
        return self.message


class TaskFuture(JobFuture):
    """The future of one try of a Parsl task."""

    parsl_executor_task_id: int
    _lost = ""

    def _see(self, event: FeedEvent) -> None:
        if event.to_state == State.RUN_TIMEOUT and not self._lost:
            # The site would run it again; whether to is up to Parsl.
            self._lost = str(event.data.get("error", "")) or "its block ended"
            try:
                self._engine.kill([self])
            except BalsamError as error:
                log.warning("job %s runs again, since it could not be killed: %s", self.job_id, error)

    def _kill(self) -> None:
        if self._lost and not self.done():
            self.set_exception(TaskLost(f"job {self.job_id} was lost: {self._lost}"))
        else:
            super()._kill()


class BalsamParslExecutor(BlockProviderExecutor, RepresentationMixin):
    """Runs Parsl's tasks as jobs of a site, in blocks that are its allocations.

    With no service given it uses the configured one (see `balsam up`, `balsam login`); where none is configured it
    starts a temporary one on this machine, with a site, and removes both at shutdown.

    Args:
        label: the executor's name in this Parsl configuration.
        site: name or id of the site; by default the configured one, or the only one there is.
        service: the service to use instead of the configured one.
        max_workers_per_node: how many single-core tasks run at once on a node; by default as many as this machine has
            cores.
        resource_specification: of the tasks that have none of their own.
        init_blocks, min_blocks, max_blocks, parallelism, nodes_per_block: as in Parsl's providers.
        wall_time_min, queue, project, optional_params: of each block, as in `BatchJob`.
        idle_ttl_sec: seconds without work after which a block ends by itself (also after this program's death); new
            tasks bring it back.
        allocate: False to ask for no blocks: the tasks run in the allocations that the site has anyway.
        directory: where tasks run; by default this program's working directory. Where it does not exist at the site
            they run in a directory of this run among the site's workdirs.
        working_dir, storage_access: for Parsl's staging of files.
        block_error_handler: as in Parsl's other executors: True, False or a function.
        remote_monitoring_radio: how tasks report to Parsl's monitoring; by default through files in the run directory.
    """

    def __init__(
        self,
        label: str = "balsam",
        *,
        site: str | int | None = None,
        service: Service | None = None,
        max_workers_per_node: int | None = None,
        resource_specification: Mapping[str, Any] | None = None,
        init_blocks: int = 1,
        min_blocks: int = 0,
        max_blocks: int = 1,
        parallelism: float = 1,
        nodes_per_block: int = 1,
        wall_time_min: int = 60,
        queue: str = "local",
        project: str = "local",
        optional_params: Mapping[str, str] | None = None,
        idle_ttl_sec: int = 600,
        allocate: bool = True,
        directory: str | None = None,
        working_dir: str | None = None,
        storage_access: list[Staging] | None = None,
        block_error_handler: bool | Callable[[BlockProviderExecutor, dict[str, JobStatus]], None] = True,
        remote_monitoring_radio: RadioConfig | None = None,
    ) -> None:
        if max_workers_per_node is not None and max_workers_per_node < 1:
            raise ValueError("max_workers_per_node must be at least 1")
        blocks = BatchJobProvider(
            init_blocks=init_blocks,
            min_blocks=min_blocks,
            max_blocks=max_blocks,
            nodes_per_block=nodes_per_block,
            parallelism=parallelism,
        )
        super().__init__(provider=blocks if allocate else None, block_error_handler=block_error_handler)
        self._blocks = blocks if allocate else None
        self.label = label
        self.site = site
        self.service = service
        self.max_workers_per_node = max_workers_per_node or len(os.sched_getaffinity(0))
        self.resource_specification = dict(resource_specification or {})
        self._usual = translate(self.resource_specification, self.max_workers_per_node)
        self.init_blocks = init_blocks
        self.min_blocks = min_blocks
        self.max_blocks = max_blocks
        self.parallelism = parallelism
        self.nodes_per_block = nodes_per_block
        self.wall_time_min = wall_time_min
        self.queue = queue
        self.project = project
        self.optional_params = dict(optional_params or {})
        self.idle_ttl_sec = idle_ttl_sec
        self.allocate = allocate
        self.directory = directory
        self.working_dir = working_dir
        self.storage_access = storage_access
        self.remote_monitoring_radio = remote_monitoring_radio or DirectoryRadio()
        self._task_ids = itertools.count(1)
        self._started_blocks: list[str] = []  #: at `start`; Parsl has not asked for them yet
        self._brought_back = 0  #: blocks, in place of others that ended for want of work
        self._over: object = None  #: why it takes no more tasks
        self._deployment: Deployment | None = None
        self._engine: Engine | None = None

    # -- what Parsl calls ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Connect, and ask for the initial blocks. Raises BalsamError."""
        super().start()  # type: ignore[no-untyped-call]
        self.name = f"{self.label}-{(self.run_id or uuid.uuid4().hex)[:8]}"
        if self.service is not None:
            self._service = self.service
        elif self.allocate:
            self._service, self._deployment = find_service()
        else:
            self._service = load_service()  # a new site would have no allocations
        try:
            self._start_at(site_id(self._service, self.site))
        except BaseException:
            self._stop_deployment()
            raise

    def _start_at(self, site: int) -> None:
        self._calls = Calls(self._service, site)
        self._base = JobSpec(app_id=self._calls.app_id, workdir=f"parsl/{self.name}", tags={TAG: self.name})
        self._usual_spec = self._spec_of(self._usual)
        directory = os.path.abspath(self.directory or os.getcwd())
        monitored = self.monitoring_messages is not None

        @lru_cache(_FUNCTIONS)
        def code(function: bytes) -> bytes:
            return dump_function(ParslCall(function, directory, monitored))

        self._code = code
        if self._blocks is not None:
            self._blocks.connect(self._service, self._block_spec(site), self._logs(site))
        self._engine = Engine(
            self._service,
            self._base.tags,
            load,
            NoAllocation(),
            patience=patience(self._deployment),
            future=TaskFuture,
            watched=[State.RUN_TIMEOUT],
        )
        if self._blocks is not None:
            self._started_blocks = super().scale_out_facade(self.init_blocks)

    def submit(
        self, func: Callable[..., Any], resource_specification: Mapping[str, Any], *args: Any, **kwargs: Any
    ) -> TaskFuture:
        """Queue a task; never waits for the network.

        Raises InvalidResourceSpecification, SerializationError, TooLarge, and what broke the executor.
        """
        if self._over is not None:
            raise self._broken(self._over)
        spec = self._usual_spec
        if resource_specification:
            spec = self._spec_of(translate(resource_specification, self.max_workers_per_node))
        try:
            code = self._code(serialize(func, _LARGE))
            arguments = dump_call_arguments((serialize(args, _LARGE), serialize(kwargs, _LARGE)), {})
        except (TypeError, PicklingError) as error:
            raise SerializationError(getattr(func, "__name__", repr(func))) from error
        app, arguments = self._calls.encode_dumped(code, arguments)
        assert self._engine is not None, "Parsl starts an executor before it submits"
        future = self._engine.submit(spec.model_copy(update={"arguments": arguments}), app)
        assert isinstance(future, TaskFuture)
        future.parsl_executor_task_id = next(self._task_ids)
        return future

    def shutdown(self) -> None:
        """End what runs, give the blocks back, and stop a temporary deployment."""
        if self._engine is not None:
            self._engine.close()
            self._fail_all("it was shut down", PATIENCE_SEC)
            self._engine.join()  # what was on its way to the service is there now
            self._withdraw()
            self._stop_deployment()
        super().shutdown()

    def _spec_of(self, request: Request) -> JobSpec:
        return self._base.model_copy(update={**dict(request), "tags": {**request.tags, **self._base.tags}})

    # -- blocks ----------------------------------------------------------------------------------------------

    def outstanding(self) -> int:
        return 0 if self._engine is None else self._engine.outstanding

    @property
    def workers_per_node(self) -> int:
        """How many of the usual tasks run at once on a node."""
        return self._usual.node_packing_count

    def scale_out_facade(self, n: int) -> list[str]:
        """Ask for `n` more blocks; those that `start` has asked for already, before Parsl did, count."""
        early, self._started_blocks = self._started_blocks[:n], self._started_blocks[n:]
        return early + super().scale_out_facade(n - len(early))

    def scale_in(self, blocks: int, max_idletime: float | None = None) -> list[str]:
        """Cancel `blocks` blocks, the idle ones first; with a `max_idletime` only idle ones."""
        assert self._blocks is not None
        job_ids = self._open_blocks()
        choose = len(job_ids) > blocks or max_idletime is not None
        busy = self._blocks.busy(job_ids) if choose and self.outstanding() else set()
        job_ids.sort(key=lambda job_id: job_id in busy)
        chosen = [job_id for job_id in job_ids[:blocks] if max_idletime is None or job_id not in busy]
        cancelled = self._filter_scale_in_ids(chosen, self._blocks.cancel(chosen))
        return [self.job_ids_to_block[job_id] for job_id in cancelled]

    def poll_facade(self) -> None:
        """Look at the blocks; bring back those that ended for want of work, as far as there is some again."""
        super().poll_facade()
        if self.bad_state_is_set:
            return
        idled = sum(status.state is JobState.COMPLETED for status in self._status.values())
        back = to_bring_back(
            self.outstanding(),
            self.workers_per_node * self.nodes_per_block,
            self.parallelism,
            alive=len(self._open_blocks()),
            idled=idled - self._brought_back,
            limit=max(self.init_blocks, self.max_blocks),
        )
        if back:
            self._brought_back += back
            self.scale_out_facade(back)

    def set_bad_state_and_fail_all(self, exception: Exception) -> None:
        if not self.bad_state_is_set:  # it is told at every look
            super().set_bad_state_and_fail_all(exception)
            self._fail_all(exception)
            self._withdraw()

    def _get_launch_command(self, block_id: str) -> str:
        return ""  # the site knows how to start its launcher

    def _open_blocks(self) -> list[str]:
        return [
            self.blocks_to_job_id[block_id]
            for block_id, status in self._status.items()
            if status.state not in TERMINAL_STATES and block_id in self.blocks_to_job_id
        ]

    def _block_spec(self, site: int) -> BatchJobSpec:
        return BatchJobSpec(
            site_id=site,
            num_nodes=self.nodes_per_block,
            wall_time_min=self.wall_time_min,
            queue=self.queue,
            project=self.project,
            optional_params=self.optional_params,
            filter_tags={TAG: self.name},
            idle_ttl_sec=self.idle_ttl_sec,
        )

    def _logs(self, site: int) -> Path | None:
        path = Path(self._service.site(site).path, "log")
        return path if path.is_dir() else None

    # -- the end ---------------------------------------------------------------------------------------------

    def _fail_all(self, reason: object, patience: float = math.inf) -> None:
        assert self._engine is not None
        self._over = reason
        lost = self._engine.abandon(self._broken(reason))
        give_up = time.monotonic() + patience
        for count, future in enumerate(lost):
            if time.monotonic() > give_up:
                log.warning("%d tasks of %s stay unresolved", len(lost) - count, self.name)
                return
            if not future.done():
                # Each has an exception of its own: whoever raises one makes its traceback longer.
                future.set_exception(self._broken(reason))

    def _withdraw(self) -> None:
        """Have nothing run any more at the site."""
        if self._deployment is not None:
            return  # it will take all with it
        try:
            self._service.kill_matching(build(JobQuery, {"tags": {TAG: self.name}}))
        except BalsamError as error:
            log.warning("what %s left could not be killed: %s", self.name, error)
        if self._blocks is not None:
            self._blocks.cancel(self._open_blocks())

    def _broken(self, reason: object) -> BadStateException:
        return BadStateException(self, reason)  # type: ignore[no-untyped-call]

    def _stop_deployment(self) -> None:
        deployment, self._deployment = self._deployment, None
        if deployment is not None:
            deployment.stop()


def load(result: Result) -> Any:
    """The value of a task, or its failure raised as Parsl raises it."""
    try:
        return deserialize(load_result(result))
    except TaskRaised as raised:
        task_raised = raised
    except (WorkerDied, JobTimeout) as died:
        raise TaskLost(died.message) from died
    raise _exception_of(task_raised)


def _exception_of(raised: TaskRaised) -> BaseException:
    try:
        wrapper = deserialize(raised.wrapper)
    except Exception as problem:  # noqa: BLE001 whatever the exception's own class does when it is made
        return DeserializationError(f"{problem}; the exception itself cannot be loaded here, it was:\n{raised}")
    error: BaseException = wrapper.get_exception()
    return error
