"""What an agent has in hand for its jobs: visits under way, and what is to be told of them."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from balsam_exec.client.service import Service
from balsam_exec.hooks.pool import Task
from balsam_exec.model.base import MAX_PAGE
from balsam_exec.model.errors import BalsamError, InvalidRequest
from balsam_exec.model.hooks import HookReport, Visit
from balsam_exec.model.jobs import JobPatch
from balsam_exec.site.verdicts import failure, hook_of

log = logging.getLogger(__name__)

#: Seconds of work to hold in advance.
_AHEAD = 0.5
#: Reports in one request.
_BATCH = 500
#: Seconds between two tries to report after a failure; and for the reports that are left when it closes.
_PAUSE, _LAST_WORDS = 1.0, 2.0


@dataclass
class _Held:
    """A visit in hand."""

    since: float = field(default_factory=time.monotonic)
    task: Task | None = None
    answered: bool = False  #: and the answer is on its way to the service


class Desk:
    """Takes visits while there is room for them, and reports what came of them in batches: one is under way, and all
    that gathers meanwhile goes with the next. Thread-safe."""

    def __init__(self, service: Service, site_id: int, workers: int) -> None:
        """`service` is closed with it. So many `workers` do the work."""
        self._service = service
        self._site_id = site_id
        self._workers = workers
        self._held: dict[Visit, _Held] = {}
        self._open = 0  #: how many of these are not answered
        self._outbox: list[HookReport] = []
        self._ends: deque[float] = deque()  #: when those of the last second were answered
        self._shut = False
        self._closed = threading.Event()
        self._changed = threading.Condition()
        self._reporter = threading.Thread(target=self._deliver, name="hook-reports", daemon=True)
        self._reporter.start()

    def wait_for_room(self) -> int:
        """How many more visits it would take; waits until it takes any. 0: it is shut."""
        with self._changed:
            self._changed.wait_for(lambda: self._shut or self._room())
            return 0 if self._shut else self._room()

    def visits(self) -> list[Visit]:
        """Those in hand, with those whose reports are under way."""
        with self._changed:
            return list(self._held)

    def take(self, visit: Visit) -> None:
        with self._changed:
            self._held[visit] = _Held()
            self._open += 1

    def assign(self, visit: Visit, task: Task) -> None:
        """Who is to do the work."""
        with self._changed:
            if visit in self._held:
                self._held[visit].task = task

    def age(self, visit: Visit) -> float | None:
        """For how many seconds it has been in hand; None if it is not."""
        with self._changed:
            held = self._held.get(visit)
            return None if held is None else time.monotonic() - held.since

    def over(self, visits: Iterable[Visit]) -> None:
        """These jobs need nothing any more: end what is under way for them."""
        with self._changed:
            for visit in visits:
                held = self._held.get(visit)
                if held is not None and held.task is not None and not held.answered:
                    held.task.cancel()

    def report(self, visit: Visit, patch: JobPatch | None) -> None:
        """What came of a visit; None: there is nothing to tell."""
        with self._changed:
            if visit not in self._held:
                return
            self._ends.append(time.monotonic())
            if patch is None:
                self._release(visit)
                return
            self._held[visit].answered = True
            self._open -= 1
            self._outbox.append(HookReport(visit=visit, patch=patch))
            self._changed.notify_all()

    def shut(self) -> None:
        """Take nothing more."""
        with self._changed:
            self._shut = True
            self._changed.notify_all()

    def close(self) -> None:
        """Report what there is, if the service takes it soon."""
        self.shut()
        with self._changed:
            self._closed.set()
            self._changed.notify_all()
        self._reporter.join(_LAST_WORDS)
        self._service.close()
        self._reporter.join(_LAST_WORDS)

    def _room(self) -> int:
        now = time.monotonic()
        while self._ends and self._ends[0] < now - 1:
            self._ends.popleft()
        ahead = min(int(len(self._ends) * _AHEAD), MAX_PAGE - self._workers)
        wanted = self._workers + ahead - self._open
        # Work held in advance is replenished when half of it is gone, so that requests are few and full.
        return max(0, wanted) if self._open < self._workers or wanted > ahead / 2 else 0

    def _release(self, visit: Visit) -> None:
        held = self._held.pop(visit)
        self._open -= not held.answered
        self._changed.notify_all()

    def _deliver(self) -> None:
        while batch := self._next_batch():
            self._send(batch)
            with self._changed:
                for report in batch:
                    self._release(report.visit)

    def _next_batch(self) -> list[HookReport]:
        with self._changed:
            self._changed.wait_for(lambda: self._outbox or self._closed.is_set())
            batch, self._outbox = self._outbox[:_BATCH], self._outbox[_BATCH:]
            return batch

    def _send(self, batch: Sequence[HookReport]) -> None:
        while True:
            try:
                for visit in self._service.report_hooks(self._site_id, batch, deadline=math.inf):
                    log.info("job %d has left %s before its hook was done", visit.job_id, visit.state)
                return
            except InvalidRequest as error:
                self._refused(batch, error)
                return
            except BalsamError as error:
                log.warning("what hooks did cannot be reported: %s", error)
                if self._closed.wait(_PAUSE):
                    return

    def _refused(self, batch: Sequence[HookReport], error: InvalidRequest) -> None:
        """The service finds fault with one of these: with which?"""
        if len(batch) > 1:
            for report in batch:
                self._send([report])
            return
        visit, patch = batch[0].visit, batch[0].patch
        hook = hook_of(visit.state)
        refused = failure(hook, f"what it set in self.job is refused: {error}")
        if patch == refused:
            log.error("job %d: %s", visit.job_id, error)
        else:
            self._send([HookReport(visit=visit, patch=refused)])
