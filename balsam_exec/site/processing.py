"""The processing service: runs the hooks of the site's jobs, and brings them files of their parents.

Jobs come by a long poll, few at a time, so that a hook finds its job and the code of its app as they are now. Nothing
is kept here: an agent that is killed leaves its jobs where they are, and the next one runs their hooks again.
"""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path

from balsam_exec.client.service import Service
from balsam_exec.hooks.calls import HookAnswer, HookCall
from balsam_exec.hooks.pool import HookPool
from balsam_exec.model.apps import AppRecord, Isolation
from balsam_exec.model.errors import BalsamError, NotFound, ServiceUnavailable
from balsam_exec.model.hooks import INPUT_FILES, HookJob, HookQuery
from balsam_exec.platform.settings import ProcessingSettings
from balsam_exec.site.desk import Desk
from balsam_exec.site.part import Part
from balsam_exec.site.verdicts import failure, hook_of, verdict

log = logging.getLogger(__name__)

#: Seconds one long poll waits.
_POLL = 30.0
#: Seconds that a job may wait for its turn here before it is looked at again.
_STALE = 1.0


class Processing(Part):
    """Idle it costs one held connection: the service answers as soon as a job waits for its site."""

    name = "processing"

    def __init__(self, service: Service, site_id: int, data: Path, settings: ProcessingSettings) -> None:
        super().__init__()
        self._service = service.sibling()  # connections of its own, to be cut when it is to stop
        self._site_id = site_id
        self._data = data
        self._timeout = settings.hook_timeout_sec
        self._workers = settings.workers or min(4, os.cpu_count() or 1)
        self._apps: dict[int, AppRecord] = {}  #: the newest that was seen of each
        self._desk: Desk | None = None

    def run(self) -> None:
        self._desk = desk = Desk(self._service.sibling(), self._site_id, self._workers)
        # As for the jobs themselves, the site that they run at is the default one.
        pool = HookPool(self._workers, {**os.environ, "BALSAM_SITE": str(self._site_id)})
        try:
            while not self.stopped and (limit := desk.wait_for_room()):
                versions = {app_id: app.digest for app_id, app in self._apps.items()}
                query = HookQuery(timeout=_POLL, limit=limit, known=desk.visits(), apps=versions)
                work = self._service.hook_work(self._site_id, query, deadline=math.inf)
                desk.over(work.over)
                for app_id in work.outdated:
                    self._fetch(app_id)
                for job in work.jobs:
                    self._begin(job, desk, pool)
        finally:
            pool.close()
            desk.close()

    def stop(self) -> None:
        super().stop()
        self._service.close()
        if self._desk is not None:
            self._desk.shut()

    def _begin(self, job: HookJob, desk: Desk, pool: HookPool) -> None:
        visit = job.visit
        self._learn(job)
        if job.job.app_id not in self._apps:
            return
        desk.take(visit)
        if strangers := [str(parent.id) for parent in job.parents if parent.site_id != self._site_id]:
            error = f"parents {', '.join(strangers)} are jobs of another site: use transfers"
            desk.report(visit, failure(INPUT_FILES, error))
            return

        def start() -> tuple[HookCall, bytes] | None:
            age = desk.age(visit)
            if age is None:
                return None
            current = job if age < _STALE else self._as_it_is_now(job)
            app = self._apps.get(job.job.app_id)
            if current is None or app is None:
                desk.report(visit, None)
                return None
            return self._call(current, app), app.payload or b""

        def done(answer: HookAnswer) -> None:
            if answer.error:
                log.info("%s of job %d: %s", hook_of(visit.state), visit.job_id, answer.error)
            desk.report(visit, verdict(visit, answer, self._timeout))
            self.progress(f"{hook_of(visit.state)} of job {visit.job_id}: {answer.error or 'done'}")

        desk.assign(visit, pool.submit(start, self._timeout, done))

    def _as_it_is_now(self, job: HookJob) -> HookJob | None:
        """The job, which somebody may have changed while it waited for its turn here; None if it has left its state."""
        try:
            record = self._service.job(job.job.id)
        except NotFound:
            return None
        except BalsamError as error:  # what is known of it has to do
            log.warning("%s", error)
            return job
        return job.model_copy(update={"job": record}) if record.state is job.job.state else None

    def _learn(self, job: HookJob) -> None:
        """Have the app of the job as it is now."""
        app_id = job.job.app_id
        known = self._apps.get(app_id)
        if known is None or known.digest != job.app_digest:
            self._fetch(app_id)

    def _fetch(self, app_id: int) -> None:
        """Goes on while the service is away, which is no reason to end the hooks that are running."""
        while True:
            try:
                self._apps[app_id] = self._service.app(app_id)
                return
            except NotFound:  # deleted, with its jobs
                self._apps.pop(app_id, None)
                return
            except ServiceUnavailable as error:
                if self.stopped:
                    raise
                log.warning("%s", error)

    def _call(self, job: HookJob, app: AppRecord) -> HookCall:
        return HookCall(
            hook=hook_of(job.job.state),
            job=job.job,
            workdir=str(self._data / job.job.workdir),
            app_digest=app.digest,
            environment=app.environment_variables,
            isolated=app.isolation is Isolation.PROCESS,
            parents=tuple((parent.id, str(self._data / parent.workdir)) for parent in job.parents),
        )
