"""`BalsamPoolExecutor`: concurrent.futures on an allocation, durable in the service.

What CPython promises of an executor holds here (its own tests run against this class); beyond it, the tasks
outlive this process: `BalsamPoolExecutor.reattach` gives their futures back.
"""

from __future__ import annotations

import atexit
import itertools
import os
import threading
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, Executor, Future
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

from pydantic import ValidationError

from balsam_exec.apps.payload import load_result
from balsam_exec.client.pages import every
from balsam_exec.client.service import Service
from balsam_exec.client.sites import site_id
from balsam_exec.executors.allocation import Allocation, NoAllocation
from balsam_exec.executors.calls import Calls
from balsam_exec.executors.chunks import run_chunk
from balsam_exec.executors.engine import Engine
from balsam_exec.executors.future import JobFuture
from balsam_exec.executors.services import find_service, patience
from balsam_exec.model.batch_jobs import BatchJobSpec
from balsam_exec.model.errors import BalsamError, InvalidRequest, NotFound
from balsam_exec.model.jobs import JobSpec, Resources
from balsam_exec.model.states import TERMINAL

if TYPE_CHECKING:
    from balsam_exec.embedded import Deployment

T = TypeVar("T")

#: The tag that every job of a pool carries; its value is the pool's name.
TAG = "pool"
#: Seconds without work after which a pool's allocation ends by itself; the next submit asks for another.
IDLE_TTL_SEC = 120
#: Seconds a temporary deployment has to get its launcher running.
START_SEC = 60.0


class Interrupted(BalsamError, BrokenExecutor):
    """The futures of a pool whose shutdown was interrupted."""

    code = "interrupted"


_open_pools: weakref.WeakSet[BalsamPoolExecutor] = weakref.WeakSet()
_exiting = False


class _Submitter(Executor):
    """`submit` and `map` with given resources; shared by the pool and its `with_resources` views."""

    _pool: BalsamPoolExecutor
    _spec: JobSpec

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run `fn(*args, **kwargs)` as a job and return its `JobFuture`.

        Function and arguments are serialized at once, so later changes to them do not matter. What cannot be
        serialized, or is over the limit, is the exception of the future. Raises RuntimeError after `shutdown`.
        """
        return self._pool._submit(self._spec, fn, args, kwargs)

    def map(
        self, fn: Callable[..., T], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[T]:
        """Like the built-in `map`, each call (or `chunksize` calls at a time) in a job, results in order.

        Raises TimeoutError from the iterator `timeout` seconds after this call, and ValueError for a chunksize below 1.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if chunksize == 1:
            return super().map(fn, *iterables, timeout=timeout)
        calls = zip(*iterables, strict=False)
        chunks = iter(lambda: list(itertools.islice(calls, chunksize)), [])
        return _flatten(super().map(partial(run_chunk, fn), chunks, timeout=timeout))


class BalsamPoolExecutor(_Submitter):
    """Runs Python calls as jobs of a site, in an allocation of its own.

    With no service given it uses the configured one (see `balsam up`, `balsam login`); where none is configured
    it starts a temporary one on this machine, with a site, and removes both at shutdown.

    Args:
        max_workers: how many calls run at once; by default as many as this machine has cores.
        name: identifies the pool for `reattach`; by default made up. Names are for good: take a new one for new work.
        service: the service to use instead of the configured one.
        site: name or id of the site; by default the configured one, or the only one there is.
        num_nodes, wall_time_min, queue, project, optional_params: the allocation to ask for, as in `BatchJob`.
        allocate: False to ask for no allocation: the jobs run in those that the site has anyway.
        resources: a job's resources (`ranks_per_node`, `gpus_per_rank`, ... of `Resources`) for every call; see
            `with_resources` for single ones.

    Raises:
        ValueError: `max_workers` is not positive.
        DoesNotExist: there is no such site.
        InvalidRequest: a resource that does not exist or makes no sense; no site is named and there are several.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        name: str | None = None,
        service: Service | None = None,
        site: str | int | None = None,
        num_nodes: int = 1,
        wall_time_min: int = 60,
        queue: str = "local",
        project: str = "local",
        optional_params: Mapping[str, str] | None = None,
        allocate: bool = True,
        resources: Mapping[str, Any] | None = None,
    ) -> None:
        if max_workers is not None and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        self._max_workers = max_workers or len(os.sched_getaffinity(0))
        self.name = name or f"pool-{uuid.uuid4().hex[:12]}"
        self._lock = threading.Lock()
        self._shut = False
        self._deployment: Deployment | None = None
        if service is None:
            service, self._deployment = find_service()
        self._service = service
        try:
            at = site_id(self._service, site)
            self._calls = Calls(self._service, at)
            packing = -(-self._max_workers // num_nodes)
            self._spec = _spec(
                {"node_packing_count": packing, **(resources or {})},
                app_id=self._calls.app_id,
                workdir=f"pools/{self.name}",
                tags={TAG: self.name},
            )
            self._pool = self
            batch = BatchJobSpec(
                site_id=at,
                num_nodes=num_nodes,
                wall_time_min=wall_time_min,
                queue=queue,
                project=project,
                optional_params=dict(optional_params or {}),
                filter_tags={TAG: self.name},
                idle_ttl_sec=IDLE_TTL_SEC,
            )
            self._allocation: Allocation | NoAllocation = NoAllocation()
            if allocate:
                self._allocation = Allocation(self._service, batch, self._work, self._give_up)
            self._engine = Engine(
                self._service,
                self._spec.tags,
                load_result,
                self._allocation,
                self._on_end,
                patience=patience(self._deployment),
            )
        except BaseException:
            self._stop_deployment()
            raise
        self.futures: list[JobFuture] = []  #: after `reattach`: one for each job of the pool, in order of submission
        _open_pools.add(self)
        try:
            self._allocation.before_send()
            if self._deployment is not None:
                self._allocation.wait_running(START_SEC)
        except BaseException:
            self.shutdown()
            raise

    @classmethod
    def reattach(cls, name: str, max_workers: int | None = None, **options: Any) -> Self:
        """The pool `name` again, after its process has died; `futures` has one future for each of its jobs.

        Takes the arguments of the constructor. Jobs that have ended meanwhile have their result; more can be submitted.
        Raises NotFound if no job of such a pool is known to the service.
        """
        pool = cls(max_workers, name=name, **options)
        try:
            pool._adopt_all()
        except BaseException:
            pool.shutdown(wait=False)
            raise
        return pool

    def with_resources(self, **resources: Any) -> Executor:
        """An executor over this pool whose calls ask for other resources: the fields of `Resources`, and `tags`.

        For example `pool.with_resources(gpus_per_rank=1, node_packing_count=4).submit(train, data)`. It lives as
        long as the pool. Raises InvalidRequest for what is not a resource.
        """
        return _View(self, resources)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more calls; give the allocation (and a temporary deployment) back when the last has ended.

        With `wait` return only then. With `cancel_futures` cancel what no launcher holds yet. While the allocation
        is running, as many calls as it has workers count as held.
        """
        global _exiting
        with self._lock:
            first = not self._shut
            self._shut = True
        if cancel_futures:
            self._engine.cancel(self._engine.pending()[self._held() :])
        if first:
            self._engine.close()
        if wait:
            try:
                self._engine.join()
            except KeyboardInterrupt:
                # Whoever interrupts the wait wants to leave, and not to be asked again at exit.
                self._engine.fail_all(Interrupted(self._epitaph()))
                raise

    def __repr__(self) -> str:
        return f"<BalsamPoolExecutor {self.name!r} max_workers={self._max_workers} at {self._service.url}>"

    # -- inside ----------------------------------------------------------------------------------------------

    def _submit(
        self, spec: JobSpec, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Future[Any]:
        with self._lock:
            if self._shut:
                when = "interpreter shutdown" if _exiting else "shutdown"
                raise RuntimeError(f"cannot schedule new futures after {when}")
            try:
                app, arguments = self._calls.encode(fn, args, kwargs)
            except BalsamError as error:
                failed: Future[Any] = Future()
                failed.set_exception(error)
                return failed
            return self._engine.submit(spec.model_copy(update={"arguments": arguments}), app)

    def _adopt_all(self) -> None:
        records = list(every(self._service.jobs, tags={TAG: self.name}))
        if not records:
            raise NotFound(f"the service knows no job of a pool {self.name!r}")
        results = self._service.results(record.id for record in records if record.state in TERMINAL)
        self.futures = [self._engine.adopt(record.id, record.state, results.get(record.id)) for record in records]

    def _work(self) -> tuple[int, int]:
        return self._engine.outstanding, self._engine.started

    def _give_up(self, error: BaseException) -> None:
        self._engine.fail_all(error)

    def _held(self) -> int:
        """How many of the oldest unresolved calls may be running already."""
        return self._max_workers if self._allocation.running else 0

    def _on_end(self) -> None:
        _open_pools.discard(self)
        if self._deployment is None:
            self._allocation.close()
        self._stop_deployment()

    def _epitaph(self) -> str:
        if self._deployment is not None:
            return "interrupted; the temporary deployment and its tasks are gone"
        return f"interrupted; the tasks go on: BalsamPoolExecutor.reattach({self.name!r}) gives their futures back"

    def _stop_deployment(self) -> None:
        deployment, self._deployment = self._deployment, None
        if deployment is not None:
            deployment.stop()


class _View(_Submitter):
    """The pool with other resources."""

    def __init__(self, pool: BalsamPoolExecutor, resources: Mapping[str, Any]) -> None:
        fixed = pool._spec
        tags = {**resources.get("tags", {}), **fixed.tags}
        own = {name: getattr(fixed, name) for name in Resources.model_fields}
        changed = {**own, **{name: value for name, value in resources.items() if name != "tags"}}
        self._pool = pool
        self._spec = _spec(changed, app_id=fixed.app_id, workdir=fixed.workdir, tags=tags)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Nothing: the pool is shut down by itself."""


def _spec(resources: Mapping[str, Any], **fields: Any) -> JobSpec:
    unknown = sorted(set(resources) - set(Resources.model_fields))
    if unknown:
        legal = ", ".join(sorted(Resources.model_fields))
        raise InvalidRequest(f"no such resource: {', '.join(unknown)} (there are: {legal})")
    try:
        return JobSpec(**resources, **fields)
    except ValidationError as error:
        raise InvalidRequest(str(error)) from error


def _flatten(lists: Iterator[list[T]]) -> Iterator[T]:
    for results in lists:
        results.reverse()
        while results:
            yield results.pop()  # and keep no reference to it


@atexit.register
def _finish_all() -> None:
    """At interpreter exit wait for what was submitted, as the executors of the standard library do."""
    global _exiting
    _exiting = True
    for pool in list(_open_pools):
        pool.shutdown(wait=True)
