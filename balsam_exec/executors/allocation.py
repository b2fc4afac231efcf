"""The allocation an executor asks for itself, and asks for again while there is work."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from typing import Protocol

from balsam_exec.model.batch_jobs import BatchJobPatch, BatchJobRecord, BatchJobSpec
from balsam_exec.model.errors import BalsamError, Conflict, NotAllowed, NotFound
from balsam_exec.model.events import Feed, FeedEvent, Kind
from balsam_exec.model.queries import FeedQuery
from balsam_exec.model.states import BATCH_JOB_ENDED, BatchJobState

log = logging.getLogger(__name__)

#: So many allocations in a row may end without having started a task before the executor gives up.
MAX_FUTILE = 2


class AllocationFailed(BalsamError, BrokenExecutor):
    """Allocations end without running anything: the message has what the site knows about the last one."""

    code = "allocation_failed"


class BatchJobService(Protocol):
    def create_batch_job(self, spec: BatchJobSpec) -> BatchJobRecord: ...
    def batch_job(self, batch_job_id: int) -> BatchJobRecord: ...
    def patch_batch_job(self, batch_job_id: int, patch: BatchJobPatch) -> BatchJobRecord: ...
    def feed(self, query: FeedQuery) -> Feed: ...


class Allocation:
    """Keeps one allocation alive while its executor has unresolved futures.

    `work` tells (futures unresolved, starts seen so far); `give_up` is called with the error when allocations turn
    out futile.
    """

    def __init__(
        self,
        service: BatchJobService,
        spec: BatchJobSpec,
        work: Callable[[], tuple[int, int]],
        give_up: Callable[[BaseException], None],
    ) -> None:
        self._service = service
        self._spec = spec
        self._work = work
        self._give_up = give_up
        self._lock = threading.Lock()
        self._current: int | None = None
        self.running = False  #: whether the current one was seen to run
        self._starts = 0  #: starts seen when the current allocation was requested
        self._futile = 0
        self._closed = False

    def before_send(self) -> None:
        with self._lock:
            if self._current is None and not self._closed:
                self._starts = self._work()[1]
                self._current = self._service.create_batch_job(self._spec).id

    def wait_running(self, timeout: float) -> None:
        """Wait until the allocation runs. Raises AllocationFailed when it ends first or `timeout` seconds pass."""
        give_up = time.monotonic() + timeout
        cursor = self._service.feed(FeedQuery()).cursor
        while self._current is not None and not self.running:
            record = self._service.batch_job(self._current)
            if record.state in BATCH_JOB_ENDED or time.monotonic() > give_up:
                raise AllocationFailed(
                    f"batch job {record.id} did not start: it is {record.state} {record.status_info}"
                )
            self.running = record.state is BatchJobState.RUNNING
            if not self.running:
                remaining = max(0.0, min(give_up - time.monotonic(), 30.0))
                cursor = self._service.feed(FeedQuery(kind=[Kind.BATCH_JOB], cursor=cursor, timeout=remaining)).cursor

    def on_event(self, event: FeedEvent) -> None:
        if event.kind is not Kind.BATCH_JOB or event.subject_id != self._current:
            return
        if event.to_state not in BATCH_JOB_ENDED:
            self.running = event.to_state == BatchJobState.RUNNING
            return
        self.running = False
        record = self._service.batch_job(event.subject_id)
        log.info("allocation %s ended: %s", record.id, record.status_info)
        unresolved, starts = self._work()
        with self._lock:
            self._current = None
            self._futile = 0 if starts > self._starts else self._futile + 1
        if not unresolved:
            return
        if self._futile >= MAX_FUTILE:
            self._give_up(
                AllocationFailed(
                    f"{self._futile} allocations in a row ended without starting a task; the last one, batch job "
                    f"{record.id}, is {record.state}: {record.status_info or 'no reason given'} (see log/ at the site)"
                )
            )
            return
        try:
            self.before_send()
        except NotAllowed as error:  # it was when the first one was requested
            self._give_up(error)

    def close(self) -> None:
        """Give the allocation back; ask for no other."""
        with self._lock:
            current, self._current, self._closed = self._current, None, True
        if current is not None:
            try:
                self._service.patch_batch_job(current, BatchJobPatch(state=BatchJobState.PENDING_DELETION))
            except (NotFound, Conflict):
                log.debug("allocation %s had ended already", current)


class NoAllocation:
    """For executors whose jobs run in allocations that somebody else looks after."""

    running = False

    def before_send(self) -> None:
        pass

    def wait_running(self, timeout: float) -> None:
        pass

    def on_event(self, event: FeedEvent) -> None:
        pass

    def close(self) -> None:
        pass
