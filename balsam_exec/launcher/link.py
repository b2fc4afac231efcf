"""The launcher's dealings with the service: acquire, report, heartbeat.

Acquires and reports go over a lane while there is one, in the launcher's own thread. What that does not take or loses,
and heartbeats, are carried by threads.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from queue import SimpleQueue
from typing import NamedTuple, Protocol, TypeVar

from balsam_exec.client.lane import Lane
from balsam_exec.launcher.events import Alive, Arrived, Delivered, Lost, Refused, Stale
from balsam_exec.launcher.reactor import Reactor
from balsam_exec.model.apps import AppRecord
from balsam_exec.model.errors import BalsamError, InvalidRequest, NotFound, StaleLease
from balsam_exec.model.sessions import (
    Acquired,
    AcquireRequest,
    Heartbeat,
    LeasedJob,
    Report,
    SessionOrders,
    SessionRecord,
)

log = logging.getLogger(__name__)

#: Seconds between attempts, after the client's own retries gave up.
_PAUSE = 0.5
#: Seconds at most that a heartbeat waits for orders.
_LISTEN = 30.0
T = TypeVar("T")


class LauncherService(Protocol):
    """What a launcher needs of the service; `balsam_exec.client.service.Service` is one. Thread-safe.

    Methods raise BalsamError: ServiceUnavailable while the service is away, NotFound or Conflict when the session is
    over.
    """

    def acquire(self, session_id: int, request: AcquireRequest, key: str) -> list[LeasedJob]: ...

    def report(self, session_id: int, reports: Sequence[Report], widen: bool = False) -> None: ...

    def heartbeat(self, session_id: int, heard: Heartbeat) -> SessionOrders: ...

    def app(self, app_id: int) -> AppRecord: ...

    def close_session(self, session_id: int) -> None: ...

    def lane(self) -> Lane | None: ...


class _Call(NamedTuple):
    """An acquire. The key has the jobs of an answer that was lost given again."""

    request: AcquireRequest
    key: str
    again: bool = False  #: it may have been answered in part


class Link:
    """Carries requests to the service and tells the reactor what comes of them. Waits out an absent service."""

    def __init__(self, service: LauncherService, session: SessionRecord, reactor: Reactor) -> None:
        #: By digest, the apps of all jobs that arrived, unless they are gone; written before `post`.
        self.apps: dict[str, AppRecord] = {}
        self._service = service
        self._session = session
        self._killing: dict[int, int] = {}  #: the orders of the last heartbeat
        self._reactor = reactor
        self._post = reactor.post
        self._stopped = threading.Event()
        self._lane = self._watched(service.lane())
        self._requests: SimpleQueue[_Call] = SimpleQueue()
        self._unknown: SimpleQueue[Arrived] = SimpleQueue()
        self._batches: SimpleQueue[tuple[Sequence[Report], bool]] = SimpleQueue()
        for work in (self._acquire, self._report, self._learn, self._keep_alive):
            threading.Thread(target=self._guarded, args=(work,), name=work.__name__, daemon=True).start()

    def acquire(self, request: AcquireRequest, *, stands: bool = False) -> None:
        """Answered by Arrived, or by Lost; what `stands`, little by little by several."""
        call = _Call(request, uuid.uuid4().hex)

        def arrived(answer: Acquired | BalsamError | None) -> None:
            if isinstance(answer, BalsamError):
                self._by_thread(self._requests, call._replace(again=stands))
                return
            event = Arrived(tuple(answer.jobs) if answer else (), more=stands and answer is not None)
            if all(job.app_digest in self.apps for job in event.jobs):
                self._reactor.emit(event)
            else:
                self._unknown.put(event)

        lane, asked = self._lane, (self._session.id, request, call.key, arrived)
        if lane is None or not (lane.keep_acquiring(*asked) if stands else lane.acquire(*asked)):
            self._requests.put(call)

    def stop_asking(self) -> None:
        """Have the service answer what stands."""
        if self._lane is not None:
            self._lane.report(self._session.id, [], True, lambda _: None)

    def report(self, reports: Sequence[Report], widen: bool = False) -> None:
        """Answered by Delivered, Stale or Refused, or by Lost. With `widen` an acquire that waits is answered, too."""
        batch = reports, widen

        def recorded(error: BalsamError | None) -> None:
            if error is None:
                self._reactor.emit(Delivered())
            else:
                self._by_thread(self._batches, batch)  # it hears the same if that is final

        if self._lane is None or not self._lane.report(self._session.id, *batch, recorded):
            self._batches.put(batch)

    def stop(self) -> None:
        """Ask nothing more. The threads are daemons: nobody waits for a long poll to come back."""
        self._stopped.set()
        if self._lane is not None:
            self._lane.close()
            while self._lane is not None:
                self._read(self._lane)

    def _watched(self, lane: Lane | None) -> Lane | None:
        if lane is not None:
            self._reactor.watch(lane.fileno(), lambda _: self._read(lane))
        return lane

    def _by_thread(self, queue: SimpleQueue[T], request: T) -> None:
        """What the lane has lost goes the usual way."""
        if not self._stopped.is_set():
            queue.put(request)

    def _read(self, lane: Lane) -> None:
        fd = lane.fileno()
        if not lane.read():
            self._reactor.forget(fd)
            self._lane = None

    def _guarded(self, work: Callable[[], None]) -> None:
        """Run `work` until the session is over."""
        try:
            while not self._stopped.is_set():
                work()
        except BalsamError as error:
            if not self._stopped.is_set():
                self._post(Lost(f"the session is over: {error}"))
        except Exception:
            log.exception("a defect of the launcher")
            self._post(Lost("a defect of the launcher"))

    def _acquire(self) -> None:
        request, key, again = self._requests.get()
        jobs = self._persist(lambda: self._service.acquire(self._session.id, request, key))
        self._arrived(Arrived(tuple(jobs), again=again))

    def _learn(self) -> None:
        self._arrived(self._unknown.get())

    def _arrived(self, event: Arrived) -> None:
        """Post the jobs, when their apps are known."""
        jobs = event.jobs
        unknown = {job.app_digest: job.app_id for job in jobs if job.app_digest not in self.apps}
        newer = {digest: self._fetch_app(app_id) or digest for digest, app_id in unknown.items()}
        if any(digest != found for digest, found in newer.items()):
            found = (job.model_copy(update={"app_digest": newer.get(job.app_digest, job.app_digest)}) for job in jobs)
            event = replace(event, jobs=tuple(found))
        self._post(event)

    def _fetch_app(self, app_id: int) -> str | None:
        """The digest of the app as it is now, maybe newer than its jobs say; None: deleted, as its jobs will say."""
        try:
            app = self._persist(lambda: self._service.app(app_id))
        except NotFound:
            return None
        self.apps[app.digest] = app
        return app.digest

    def _report(self) -> None:
        batch, widen = self._batches.get()
        try:
            self._persist(lambda: self._service.report(self._session.id, batch, widen))
        except StaleLease as error:
            self._post(Stale(frozenset(error.detail["job_ids"])))
        except InvalidRequest as error:
            self._post(Refused(str(error)))
        else:
            self._post(Delivered())

    def _keep_alive(self) -> None:
        heard = Heartbeat(timeout=min(self._session.ttl_sec / 4, _LISTEN), killing=self._killing)
        self._killing = self._persist(lambda: self._service.heartbeat(self._session.id, heard)).kill
        self._post(Alive(frozenset(self._killing.items())))

    def _persist(self, call: Callable[[], T]) -> T:
        """Try until there is an answer. When the lease cannot last so long, the pilot ends the launcher."""
        while True:
            try:
                return call()
            except BalsamError as error:
                if not (error.transient or type(error) is BalsamError):  # the latter: an internal error over there
                    raise
                log.warning("the service does not answer: %s", error)
                if self._stopped.wait(_PAUSE):
                    raise
