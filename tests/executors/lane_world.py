"""A real service whose launcher is the test, and engines that send over lanes."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from typing import Any

from balsam_exec.client.service import Service
from balsam_exec.executors.allocation import NoAllocation
from balsam_exec.executors.direct import DirectEngine
from balsam_exec.executors.future import JobFuture
from balsam_exec.executors.libensemble.story import WATCHED
from balsam_exec.model.apps import AppRecord, AppSpec
from balsam_exec.model.base import now
from balsam_exec.model.errors import ServiceUnavailable
from balsam_exec.model.jobs import JobCreated, JobSpec, Result
from balsam_exec.model.sessions import AcquireRequest, LeasedJob, Report, SessionSpec
from balsam_exec.model.sites import SiteSpec
from balsam_exec.model.states import JobState
from tests.support.services import LiveService

DEADLINE = 20.0


class Watched(Service):
    """Counts what is created over HTTP."""

    over_http = 0

    def create_jobs(self, *arguments: Any, **options: Any) -> list[JobCreated]:
        self.over_http += 1
        return super().create_jobs(*arguments, **options)


class World:
    """A service of the test's own, an app at a site of it, a session that takes the jobs, and an engine."""

    def __init__(self, live: LiveService, kind: type[JobFuture] = JobFuture) -> None:
        self.kind = kind
        self.live = live
        self.service = Watched(live.url, live.token)
        self.site = self.service.create_site(SiteSpec(name="here")).id
        self.app: AppRecord = self.service.put_app(AppSpec(site_id=self.site, name="t", command_template="true"))
        self.session = self.service.open_session(SessionSpec(site_id=self.site, ttl_sec=600)).id
        self.ended = threading.Event()
        self.tags = {"campaign": uuid.uuid4().hex}
        self.engine = self.new_engine(self.ended.set)

    def new_engine(self, on_end: Callable[[], None] = lambda: None) -> DirectEngine:
        watched = () if self.kind is JobFuture else WATCHED
        guard = NoAllocation()
        return DirectEngine(
            self.service, self.tags, lambda result: result.return_code, guard, on_end, future=self.kind, watched=watched
        )

    def end(self) -> None:
        self.engine.fail_all(ServiceUnavailable("the test is over"))
        self.engine.close()
        self.engine.join()
        assert self.ended.wait(DEADLINE)
        self.service.close()

    def spec(self, **fields: Any) -> JobSpec:
        return JobSpec(**{"app_id": self.app.id, "workdir": "w", "tags": self.tags, **fields})

    def finish(self, count: int = 1, code: int = 0) -> None:
        """Take so many jobs and report that they ran."""
        while count:
            found = self.take(count)
            count -= len(found)
            self.run(found)
            self.report(found, state=JobState.RUN_DONE, result=Result(ok=True, return_code=code))

    def take(self, count: int = 1) -> list[LeasedJob]:
        """At most so many jobs, at least one."""
        found = self.service.acquire(self.session, AcquireRequest(max_jobs=count, max_nodes=1, timeout=DEADLINE))
        assert found
        return found

    def run(self, jobs: list[LeasedJob]) -> None:
        self.report(jobs, state=JobState.RUNNING)

    def report(self, jobs: list[LeasedJob], **what: Any) -> None:
        self.service.report(
            self.session, [Report(job_id=job.id, epoch=job.epoch, timestamp=now(), **what) for job in jobs]
        )

    def created(self) -> set[Any]:
        """The moments at which jobs were created: one for each request."""
        return {job.created for job in self.service.jobs(limit=1000).results}
