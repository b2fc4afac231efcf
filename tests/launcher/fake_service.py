"""The service as a launcher sees it, in memory: leases, epochs, long polls, reports; and faults on demand."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from balsam_exec.model.apps import AppRecord
from balsam_exec.model.base import now
from balsam_exec.model.errors import BalsamError, NotFound, ServiceUnavailable, StaleLease
from balsam_exec.model.jobs import Result
from balsam_exec.model.sessions import AcquireRequest, Heartbeat, LeasedJob, Report, SessionOrders, SessionRecord
from balsam_exec.model.states import Actor, JobState, check

SESSION = 7
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


class FakeService:
    """Jobs wait in order; each change wakes whoever waits. Refuses what the real one refuses."""

    def __init__(self, ttl: float = 60.0) -> None:
        self.ttl = ttl
        self.apps: dict[int, AppRecord] = {}
        self.waiting: list[LeasedJob] = []
        self.leased: dict[int, LeasedJob] = {}
        self.state: dict[int, JobState] = {}
        self.history: dict[int, list[Report]] = {}
        self.results: dict[int, Result] = {}
        self.batches: list[list[Report]] = []
        self.requests: list[AcquireRequest] = []
        self.kill: dict[int, int] = {}  #: orders to kill: job id -> epoch
        self.heartbeats = 0
        self.widenings = 0  #: reports that had the waiting acquire answered
        self.closed = False
        self.fault: BalsamError | None = None  #: what every call raises
        self.report_fault: Callable[[Sequence[Report]], None] = lambda reports: None
        self.lose_answers = 0  #: so many acquires are done and not answered
        self._acquired: tuple[str, list[LeasedJob]] = "", []
        self._changed = threading.Condition()
        self._ids = 0

    # --- what tests do

    def add_app(self, **fields: Any) -> AppRecord:
        app_id = fields.pop("id", len(self.apps) + 1)
        spec = {"site_id": 1, "name": f"app{app_id}", "created": LONG_AGO, "last_update": LONG_AGO, **fields}
        spec.setdefault("digest", f"digest-{app_id}-{hash(repr(sorted(fields.items())))}")
        self.apps[app_id] = AppRecord(id=app_id, **spec)
        return self.apps[app_id]

    def add_jobs(self, app: AppRecord, count: int = 1, **fields: Any) -> list[int]:
        with self._changed:
            made = []
            for _ in range(count):
                self._ids += 1
                values = {"workdir": f"job{self._ids}", **fields}
                job = LeasedJob(id=self._ids, epoch=0, app_id=app.id, app_digest=app.digest, **values)
                self.state[job.id] = JobState.PREPROCESSED
                self.history[job.id] = []
                self.waiting.append(job)
                made.append(job.id)
            self._changed.notify_all()
            return made

    def add_job(self, app: AppRecord, **fields: Any) -> int:
        return self.add_jobs(app, **fields)[0]

    def order_kill(self, *job_ids: int) -> None:
        """Of jobs that the launcher holds."""
        with self._changed:
            self.kill.update((job_id, self.leased[job_id].epoch) for job_id in job_ids)
            self._changed.notify_all()

    def take_away(self, job_id: int) -> None:
        """Its lease is over."""
        with self._changed:
            job = self.leased.pop(job_id)
            self.state[job_id] = JobState.USER_KILLED
            self.leased[-job_id] = job

    def set_fault(self, fault: BalsamError | None) -> None:
        with self._changed:
            self.fault = fault
            self._changed.notify_all()

    def wait(self, job_ids: Sequence[int], *states: JobState, timeout: float = 20) -> None:
        """Until all these jobs are in one of `states`, by default the ends of a run."""
        wanted = states or (JobState.RUN_DONE, JobState.RUN_ERROR, JobState.RUN_TIMEOUT, JobState.USER_KILLED)
        self.wait_for(lambda: all(self.state[i] in wanted for i in job_ids), timeout)

    def wait_for(self, condition: Callable[[], bool], timeout: float = 20) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, timeout), f"waited {timeout} s in vain: {self.state}"

    # --- what the launcher calls

    def session(self) -> SessionRecord:
        return SessionRecord(id=SESSION, site_id=1, expires=now() + timedelta(seconds=self.ttl), ttl_sec=self.ttl)

    def acquire(self, session_id: int, request: AcquireRequest, key: str) -> list[LeasedJob]:
        with self._changed:
            self._check(session_id)
            if key == self._acquired[0]:
                return self._acquired[1]
            self.requests.append(request)
            self._changed.notify_all()
            deadline = time.monotonic() + request.timeout
            widenings = self.widenings
            while not self.waiting and widenings == self.widenings and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
                self._check(session_id)
            found, self.waiting = self.waiting[: request.max_jobs], self.waiting[request.max_jobs :]
            found = [job.model_copy(update={"epoch": job.epoch + 1}) for job in found]
            self.leased.update((job.id, job) for job in found)
            self._acquired = key, found
            if self.lose_answers:
                self.lose_answers -= 1
                raise ServiceUnavailable("the answer was lost")
            return found

    def report(self, session_id: int, reports: Sequence[Report], widen: bool = False) -> None:
        with self._changed:
            self._check(session_id)
            self.report_fault(reports)
            stale = {r.job_id for r in reports if r.job_id not in self.leased or self.leased[r.job_id].epoch != r.epoch}
            if stale:
                raise StaleLease("these leases are over", job_ids=sorted(stale))
            self.batches.append(list(reports))
            self.widenings += widen
            for report in reports:
                self._record(report)
            self._changed.notify_all()

    def heartbeat(self, session_id: int, heard: Heartbeat) -> SessionOrders:
        with self._changed:
            self._check(session_id)
            self.heartbeats += 1
            self._changed.notify_all()
            deadline = time.monotonic() + heard.timeout
            while not self.kill.items() - heard.killing.items() and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
                self._check(session_id)
            return SessionOrders(**self.session().model_dump(), kill=dict(self.kill))

    def app(self, app_id: int) -> AppRecord:
        with self._changed:
            self._check(SESSION)
            if app_id not in self.apps:
                raise NotFound("no such app")
            return self.apps[app_id]

    def lane(self) -> None:
        """There is none: what is asked goes by threads."""

    def close_session(self, session_id: int) -> None:
        with self._changed:
            self._check(session_id)
            self.closed = True
            self._changed.notify_all()

    def _check(self, session_id: int) -> None:
        if self.fault is not None:
            raise self.fault
        if session_id != SESSION or self.closed:
            raise NotFound("no such session")

    def _record(self, report: Report) -> None:
        self.history[report.job_id].append(report)
        if report.state is None:
            assert self.state[report.job_id] is JobState.PREPROCESSED, "released after it was started"
            self.waiting.append(self.leased.pop(report.job_id))
            return
        check(self.state[report.job_id], report.state, Actor.LAUNCHER)
        if report.state is not JobState.RUNNING:
            ordered = self.kill.pop(report.job_id, None)
            assert report.state is not JobState.USER_KILLED or ordered == report.epoch
        self.state[report.job_id] = report.state
        if report.result is not None:
            self.results[report.job_id] = report.result
