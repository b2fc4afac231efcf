"""Reports on their way to the service: what goes now, what waits for company, what is sent again. Pure."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection
from itertools import islice

from balsam_exec.model.base import MAX_BODY, MAX_BULK
from balsam_exec.model.jobs import Result
from balsam_exec.model.sessions import Report
from balsam_exec.model.states import JobState

#: Bytes of results in one batch; a quarter of what a request may have, so that JSON and base64 fit as well.
_MAX_BYTES = MAX_BODY // 4
_OVERHEAD = 300
_REFUSED = "the service refused the result: "

#: A job's id and the epoch in which it was leased.
Lease = tuple[int, int]


class Outbox:
    """One batch is under way at a time, and all that gathers meanwhile goes with the next. Reports linger a little for
    company, unless one of them is urgent."""

    def __init__(self, linger: float) -> None:
        self._linger = linger
        self._waiting: deque[Report] = deque()
        self._under_way: list[Report] = []
        self._due = math.inf
        self._urgent = False
        self._limit = MAX_BULK

    def __len__(self) -> int:
        """Reports that the service has not confirmed."""
        return len(self._waiting) + len(self._under_way)

    def has(self, lease: Lease) -> bool:
        """Whether a report of this lease is not confirmed."""
        return any(lease_of(report) == lease for report in (*self._waiting, *self._under_way))

    @property
    def due(self) -> float:
        """When `take` will have something to give at the latest, infinity if nothing waits or a batch is under way."""
        return math.inf if self._under_way else self._due

    def put(self, report: Report, now: float, *, urgent: bool) -> None:
        self._waiting.append(report)
        self._due = min(self._due, now + self._linger)
        self._urgent = self._urgent or urgent

    def take(self, now: float, *, patient: bool = False) -> list[Report]:
        """The next batch, empty if none is due; `patient`: what is urgent lingers as well. It is under way until
        `delivered`, `stale` or `refused`."""
        if self._under_way or not self._waiting:
            return []
        if self._due > now and (patient or not self._urgent):
            return []
        size, count = 0, 0
        for report in islice(self._waiting, self._limit):
            size += _size(report)
            if count and size > _MAX_BYTES:
                break
            count += 1
        self._under_way = [self._waiting.popleft() for _ in range(count)]
        self._due = now if self._waiting else math.inf
        self._urgent = bool(self._waiting)
        return self._under_way.copy()

    def delivered(self) -> set[Lease]:
        """Of these leases the service has confirmed reports."""
        confirmed = set(map(lease_of, self._under_way))
        self._under_way = []
        self._limit = min(MAX_BULK, self._limit * 2)
        return confirmed

    def stale(self, job_ids: Collection[int], now: float) -> set[Lease]:
        """The batch was not recorded, because leases of these jobs are over: which; the rest is sent again."""
        epochs: dict[int, int] = {}
        for report in self._under_way:
            if report.job_id in job_ids:
                epochs[report.job_id] = min(report.epoch, epochs.get(report.job_id, report.epoch))
        # Of several epochs of one job the earliest is over; if the later one is too, the service will say so again.
        over = set(epochs.items())
        self._again([report for report in self._under_way if lease_of(report) not in over], now)
        return over

    def forget(self, leases: Collection[Lease]) -> None:
        self._waiting = deque(report for report in self._waiting if lease_of(report) not in leases)
        if not self._waiting:
            self._due = math.inf

    def refused(self, why: str, now: float) -> Report | None:
        """The service found fault with the batch. It is halved until the report that it does not like stands alone;
        that one then becomes a plain RUN_ERROR that says so, or is given up and returned."""
        batch = self._under_way
        if len(batch) > 1:
            self._limit = len(batch) // 2
            self._again(batch, now)
            return None
        report = batch[0]
        if report.result is None or report.result.error.startswith(_REFUSED):
            self._again([], now)
            return report
        error = f"{_REFUSED}{why}"
        failed = Result(ok=False, error=error, reason="exception")
        data = {"error": error}
        self._again([report.model_copy(update={"state": JobState.RUN_ERROR, "result": failed, "data": data})], now)
        return None

    def _again(self, reports: list[Report], now: float) -> None:
        self._waiting.extendleft(reversed(reports))
        self._under_way = []
        self._due = now if self._waiting else math.inf


def lease_of(report: Report) -> Lease:
    return report.job_id, report.epoch


def _size(report: Report) -> int:
    result = report.result
    if result is None:
        return _OVERHEAD
    return _OVERHEAD + len(result.value or b"") + len(result.exception or b"") + len(result.error)
