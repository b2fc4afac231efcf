"""The engine under every executor: job specs go in, futures come back, batches go out, the change feed resolves.

Two threads per engine, asleep whenever nothing is outstanding. The *sender* posts whatever has gathered since its last
request; the *follower* holds a long poll on the change feed and settles futures from the events. Nothing polls.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, Self, TypeVar

from balsam_exec.executors.future import JobFuture
from balsam_exec.model.apps import AppRecord, AppSpec
from balsam_exec.model.errors import BalsamError, JobFailed, ServiceUnavailable
from balsam_exec.model.events import Feed, FeedEvent, Kind
from balsam_exec.model.jobs import JobCreated, JobSpec, Killed, Result
from balsam_exec.model.queries import FeedQuery
from balsam_exec.model.states import TERMINAL, BatchJobState, JobState

log = logging.getLogger(__name__)
T = TypeVar("T")

#: The most jobs in one request: enough to amortize it, few enough that the first ones start early.
MAX_BATCH = 1000
#: How long one long poll lasts, in seconds.
POLL_SEC = 30.0
#: How long a cancel waits for a submission that is on its way, in seconds.
CANCEL_SEC = 10.0
#: How long a service may be away before futures fail, in seconds.
PATIENCE_SEC = 3600.0
#: The pause before a service that could not be reached is tried again, in seconds (the transport has tried for longer).
RETRY_SEC = 2.0

FINAL = frozenset({*(state.value for state in TERMINAL), "deleted"})
WATCHED = [*sorted(FINAL), JobState.RUNNING.value, *(state.value for state in BatchJobState)]


class JobService(Protocol):
    """What the engine asks of the service (`balsam_exec.client.service.Service` has it)."""

    def create_jobs(self, specs: Sequence[JobSpec], key: str | None = None) -> list[JobCreated]: ...
    def put_app(self, spec: AppSpec) -> AppRecord: ...
    def cancel_jobs(self, ids: Sequence[int]) -> list[int]: ...
    def kill_jobs(self, ids: Sequence[int]) -> Killed: ...
    def results(self, ids: Sequence[int]) -> dict[int, Result]: ...
    def feed(self, query: FeedQuery) -> Feed: ...
    def sibling(self) -> Self: ...
    def close(self) -> None: ...


class Guard(Protocol):
    """What an executor adds: looks after the allocations that its jobs run in. Called on the engine's threads."""

    def before_send(self) -> None:
        """Jobs are about to be sent; raises to fail them."""

    def on_event(self, event: FeedEvent) -> None:
        """A batch job of this owner changed."""


class Item(NamedTuple):
    """A job on its way to the service."""

    spec: JobSpec
    app: AppSpec | None
    future: JobFuture


class Engine:
    """Submits jobs that all carry `tags` and resolves their futures.

    `load` turns the `Result` of a job that ended into its value, or raises. `guard` looks after allocations. `on_end`
    is called on a thread of the engine when it was closed and its last future is resolved. A service that cannot be
    reached is tried again for `patience` seconds; then the futures fail with ServiceUnavailable, while the jobs
    stay what they are at the service. `future` is the kind of futures to make; it sees the states of `watched`, too.
    """

    def __init__(
        self,
        service: JobService,
        tags: dict[str, str],
        load: Callable[[Result], Any],
        guard: Guard,
        on_end: Callable[[], None] = lambda: None,
        *,
        patience: float = PATIENCE_SEC,
        future: type[JobFuture] = JobFuture,
        watched: Iterable[str] = (),
    ) -> None:
        self._service = service
        self._feed = service.sibling()  # connections of its own: closing it ends a long poll at once
        self._load = load
        self._guard = guard
        self._on_end = on_end
        self._patience = patience
        self._future = future
        self._query = FeedQuery(
            kind=[Kind.JOB, Kind.BATCH_JOB],
            to_state=[*WATCHED, *watched],
            tags=[f"{key}:{value}" for key, value in tags.items()],
            include_results=True,
            timeout=POLL_SEC,
        )
        self._cursor = service.feed(FeedQuery()).cursor
        lock = threading.RLock()
        self._changed = threading.Condition(lock)
        self._work = threading.Condition(lock)  #: for the sender, who would be woken by every event otherwise
        self._apps: dict[str, int] = {}  #: the ids of those that were registered
        self._queue: deque[Item] = deque()
        self._sending: set[JobFuture] = set()
        self._jobs: dict[int, JobFuture] = {}
        self._early: dict[int, list[FeedEvent]] = {}  #: events that came before the answer to the submission
        self._closing = False
        self._broken: BaseException | None = None
        self.started = 0  #: how many times a job of ours was seen to start or end
        self._threads = [
            threading.Thread(target=self._run, args=(loop,), name=f"balsam-{name}", daemon=True)
            for name, loop in (("sender", self._send_loop), ("follower", self._follow_loop))
        ]
        for thread in self._threads:
            thread.start()

    # -- what executors call -------------------------------------------------------------------------------

    def submit(self, spec: JobSpec, app: AppSpec | None = None) -> JobFuture:
        """Queue a job and return its future. Never blocks on the network.

        With an `app`, named by its content, this is registered first where it was not yet, and the job becomes its.
        """
        future = self._future(self)
        with self._changed:
            if self._broken is not None:
                raise self._broken
            if self._closing:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._queue.append(Item(spec, app, future))
            self._queued()
        return future

    def adopt(self, job_id: int, state: JobState, result: Result | None = None) -> JobFuture:
        """The future of a job that exists already, and stood so when this engine was new, or later.

        Adopt before anything is submitted: the feed is followed from the first job on, and tells what has happened to
        it since the engine was made.
        """
        future = self._future(self)
        future.job_id = job_id
        if state in TERMINAL:
            self._resolve(future, state, result, "")
            return future
        if state is JobState.RUNNING:
            future._start()
        with self._changed:
            self._jobs[job_id] = future
            self._changed.notify_all()
        return future

    @property
    def outstanding(self) -> int:
        """How many futures are not resolved yet."""
        with self._changed:
            return self._outstanding()

    def pending(self) -> list[JobFuture]:
        """The unresolved futures, oldest first."""
        with self._changed:
            known = sorted(self._jobs.values(), key=lambda f: f.job_id or 0)
            return [*known, *self._sending, *(item.future for item in self._queue)]

    def cancel(self, futures: Iterable[JobFuture]) -> list[JobFuture]:
        """Cancel those that no launcher holds yet, in one request; returns them."""
        return self._end(futures, self._service.cancel_jobs)

    def kill(self, futures: Iterable[JobFuture]) -> list[JobFuture]:
        """Kill the jobs of those that are not resolved; returns those that are dead already, as what no launcher held.

        The others, which may run, resolve when nothing is left of their jobs: as killed, or with what was faster.
        """
        return self._end(futures, lambda ids: self._service.kill_jobs(ids).killed)

    def _end(self, futures: Iterable[JobFuture], end: Callable[[Sequence[int]], Sequence[int]]) -> list[JobFuture]:
        """End what was not sent yet, and by `end`, which answers which are gone, what was."""
        wanted = set(futures)
        with self._changed:
            gone = [item.future for item in self._queue if item.future in wanted]
            self._queue = deque(item for item in self._queue if item.future not in wanted)
            self._changed.wait_for(lambda: not (wanted & self._sending), timeout=CANCEL_SEC)
            sent = {job_id: f for f in wanted if (job_id := f.job_id) in self._jobs and job_id}
        if sent:
            ended = end(list(sent))
            gone += [sent[job_id] for job_id in ended]  # the feed may have told of it already
            with self._changed:
                for job_id in ended:
                    self._jobs.pop(job_id, None)
        for future in gone:
            future._kill()
        with self._changed:
            self._changed.notify_all()
        return gone

    def lend_thread(self, is_over: Callable[[], bool], timeout: float | None) -> None:
        """There is nothing to do for it."""

    def rouse(self) -> None:
        """Nobody has lent a thread."""

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until the service has taken or refused all that was submitted; whether it has, within the time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._queue and not self._sending, timeout)

    def fail_all(self, error: BaseException) -> None:
        """Give up: every unresolved future fails with `error`, and every later submit raises it."""
        for future in self.abandon(error):
            if not future.done():
                future.set_exception(error)

    def abandon(self, error: BaseException) -> list[JobFuture]:
        """Give up, every later submit raises `error`; the unresolved futures, which are the caller's from now on."""
        with self._changed:
            self._broken = error
            lost = [*self._jobs.values(), *self._sending, *(item.future for item in self._queue)]
            self._jobs.clear()
            self._queue.clear()
            self._sending.clear()
            self._changed.notify_all()
        self._stop_following()
        return lost

    def close(self) -> None:
        """Accept no more jobs. When the last future is resolved the threads end; `join` waits for that."""
        with self._changed:
            self._closing = True
            self._work.notify_all()
            self._changed.notify_all()

    def join(self) -> None:
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    # -- sending -------------------------------------------------------------------------------------------

    def _queued(self) -> None:
        """There is something to send; with the lock."""
        self._work.notify()

    def _send_loop(self) -> None:
        while True:
            with self._changed:
                self._work.wait_for(lambda: self._queue or self._closing)
                if not self._queue:
                    return
            self._send(self._take(), uuid.uuid4().hex)

    def _take(self) -> list[Item]:
        with self._changed:
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), MAX_BATCH))]
            self._sending.update(item.future for item in batch)
            return batch

    def _send(self, batch: list[Item], key: str) -> None:
        """Create the jobs; sent again with the same key they are not created twice."""
        try:
            self._guard.before_send()
            specs = [self._complete(item) for item in batch]
            created = self._persist(lambda: self._service.create_jobs(specs, key=key))
        except BalsamError as error:
            if len(batch) > 1 and not error.transient:
                # One bad job must not take the others with it.
                half = len(batch) // 2
                self._send(batch[:half], uuid.uuid4().hex)
                self._send(batch[half:], uuid.uuid4().hex)
                return
            with self._changed:
                lost = [item.future for item in batch if item.future in self._sending]
                self._sending.difference_update(lost)
                self._changed.notify_all()
            for future in lost:
                future.set_exception(error)
            return
        for event in self._register(batch, created):
            self._apply_event(event)

    def _complete(self, item: Item) -> JobSpec:
        """The spec with the id of its app, which is registered if need be."""
        app = item.app
        if app is None:
            return item.spec
        if app.name not in self._apps:
            self._apps[app.name] = self._persist(lambda: self._service.put_app(app)).id
        return item.spec.model_copy(update={"app_id": self._apps[app.name]})

    def _register(self, batch: list[Item], created: list[JobCreated]) -> list[FeedEvent]:
        """Give the futures their jobs; returns the events that were faster than the answer to the submission."""
        early: list[FeedEvent] = []
        with self._changed:
            for item, job in zip(batch, created, strict=True):
                future = item.future
                if future in self._sending:  # not failed by `fail_all` meanwhile
                    self._sending.discard(future)
                    future.job_id = job.id
                    self._jobs[job.id] = future
                early += self._early.pop(job.id, ())
            if not self._sending:
                self._early.clear()
            self._changed.notify_all()
        return early

    # -- following -----------------------------------------------------------------------------------------

    def _follow_loop(self) -> None:
        try:
            while self._wait_for_work():
                self._follow()
            # A broken engine stays until it is closed, too.
            with self._changed:
                self._changed.wait_for(lambda: self._closing)
        finally:
            self._on_end()

    def _stop_following(self) -> None:
        """Wake who follows; from any thread."""
        self._feed.close()

    def _wait_for_work(self) -> bool:
        """Until there is a job to follow; False when there will be none any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or (self._closing and not self._outstanding()))
            return bool(self._jobs)

    def _follow(self) -> None:
        self._tell(self._persist(lambda: self._feed.feed(self._query.model_copy(update={"cursor": self._cursor}))))

    def _tell(self, feed: Feed) -> None:
        for event in feed.events:
            if event.kind is Kind.JOB:
                self._apply_event(event)
            else:
                self._guard.on_event(event)
        self._cursor = feed.cursor

    def _apply_event(self, event: FeedEvent) -> None:
        with self._changed:
            self.started += 1
            if self._sending and event.subject_id not in self._jobs:
                self._early.setdefault(event.subject_id, []).append(event)
                return
        self._apply(event)

    def _apply(self, event: FeedEvent) -> None:
        job_id, state = event.subject_id, event.to_state
        with self._changed:
            future = self._jobs.pop(job_id, None) if state in FINAL else self._jobs.get(job_id)
            self._changed.notify_all()
        if future is None:
            return  # nobody waits for it, or a cancel was faster
        future._see(event)
        if state in FINAL:
            self._resolve(future, state, event.result, str(event.data.get("error", "")))
        elif state == JobState.RUNNING:
            future._start()

    def _resolve(self, future: JobFuture, state: str, result: Result | None, error: str) -> None:
        if state == JobState.USER_KILLED:
            future._kill()
            return
        value: Any = None
        failure: BaseException | None = None
        try:
            if result is None and state == JobState.JOB_FINISHED and future.job_id is not None:
                result = self._service.results([future.job_id]).get(future.job_id)
            if result is None:
                raise JobFailed(f"job {future.job_id} ended as {state}" + (f": {error}" if error else ""))
            value = self._load(result)
        except BaseException as exc:  # noqa: BLE001 - whatever the task raised, SystemExit too, is its outcome
            failure = exc
        try:
            if failure is None:
                future.set_result(value)
            else:
                future.set_exception(failure)
        finally:
            failure = None  # break the cycle through the traceback

    # -- common --------------------------------------------------------------------------------------------

    def _outstanding(self) -> int:
        return len(self._queue) + len(self._sending) + len(self._jobs)

    def _persist(self, call: Callable[[], T]) -> T:
        """The answer of `call`, however long the service is away, within the engine's patience."""
        give_up = time.monotonic() + self._patience
        while True:
            try:
                return call()
            except ServiceUnavailable as error:
                if self._broken is not None or time.monotonic() >= give_up:
                    raise
                log.warning("%s; trying again", error)
                with self._changed:
                    if self._changed.wait_for(lambda: self._broken is not None, timeout=RETRY_SEC):
                        raise

    def _run(self, loop: Callable[[], None]) -> None:
        """A thread's life. What ends a loop unforeseen fails every future instead of leaving it hanging."""
        try:
            loop()
        except Exception as error:
            if self._broken is None:
                log.exception("%s failed", threading.current_thread().name)
                self.fail_all(error)
