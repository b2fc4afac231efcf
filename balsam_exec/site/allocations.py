"""Brings the site's batch jobs to its scheduler, and what the scheduler says of them back to the service."""

from __future__ import annotations

import logging
import shlex
import sys
import threading
import time
from collections.abc import Mapping
from datetime import UTC

import jinja2

from balsam_exec.client.feed import Follower, follow
from balsam_exec.client.pages import every
from balsam_exec.client.service import Service
from balsam_exec.model.base import now
from balsam_exec.model.batch_jobs import AllocationRequest, BatchJobPatch, BatchJobRecord
from balsam_exec.model.errors import BalsamError, Conflict, IllegalTransition, NotFound
from balsam_exec.model.events import Kind
from balsam_exec.model.states import BATCH_JOB_ENDED, BatchJobState
from balsam_exec.platform.schedulers import Status, SubmitSpec, Window, make_scheduler
from balsam_exec.platform.schedulers.base import ModifyRefused, SchedulerState, SchedulerUnavailable, SubmitRefused
from balsam_exec.platform.settings import SiteDirectory, SiteSettings
from balsam_exec.site.decisions import Cancel, Modify, Submit, Update, decide, refused
from balsam_exec.site.last_words import last_words
from balsam_exec.site.part import Part

log = logging.getLogger(__name__)

#: Seconds before another look after something went wrong, doubling from the first to the last.
_FIRST_PAUSE, _LAST_PAUSE = 0.2, 10.0
#: Seconds that the service has to answer when the agent is draining.
_LAST_WORDS = 5.0


class Allocations(Part):
    """Woken by the change feed and by the scheduler. All it knows is in the service and the scheduler's own records,
    so that it may be killed and started again at any time."""

    name = "allocations"

    def __init__(self, service: Service, site_id: int, site: SiteDirectory, settings: SiteSettings) -> None:
        super().__init__()
        self._service = service
        self._site_id = site_id
        self._site = site
        self._wake = threading.Event()
        self._scheduler = make_scheduler(settings, site, self._wake.set)
        self._draining = False
        self._seen: set[str] = set()  #: ids at the scheduler, of the last look

    def run(self) -> None:
        with follow(self._service, kind=[Kind.BATCH_JOB], site_id=[self._site_id]) as feed:
            watcher = threading.Thread(target=self._watch, args=(feed,), name="batch-job-feed", daemon=True)
            watcher.start()
            try:
                self._loop(watcher)
            finally:
                feed.stop()
                watcher.join()

    def stop(self) -> None:
        super().stop()
        self._wake.set()

    def close(self) -> None:
        self._scheduler.close()

    def windows(self) -> list[Window]:
        """Where an allocation would start at once, as far as the scheduler tells."""
        return self._scheduler.windows()

    def drain(self, timeout: float) -> bool:
        """Submit nothing more, cancel all that lives, and wait: whether all of it ended within `timeout` seconds.

        Call it instead of `stop`. What runs is ended also when the service cannot be asked or told.
        """
        deadline = time.monotonic() + timeout
        self._draining = True
        self.stop()
        self._service.close()
        self.join(timeout)
        self._cancel_seen()
        self._look_once_more()
        self._wake.clear()
        while self._cancel_seen():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self._wake.wait(min(left, self._scheduler.poll_sec or left))
            self._wake.clear()
        self._look_once_more()
        return True

    def _look_once_more(self) -> None:
        """Learn what there is and tell how it ended, if the service answers soon."""
        with last_words(self._service, _LAST_WORDS) as self._service:
            self._reconcile()

    def _cancel_seen(self) -> int:
        """End what the last look has seen; how many have not ended."""
        statuses = self._scheduler.statuses(self._seen)
        living = [name for name, status in statuses.items() if status.state is not SchedulerState.FINISHED]
        for scheduler_id in living:
            self._scheduler.cancel(scheduler_id)
        return len(living)

    def _watch(self, feed: Follower) -> None:
        try:
            for _ in feed.batches():
                self._wake.set()
        except BalsamError as error:
            log.error("the change feed ended: %s", error)
        self._wake.set()

    def _loop(self, watcher: threading.Thread) -> None:
        pause = _FIRST_PAUSE
        while not self.stopped:
            self._wake.clear()
            try:
                self.progress(f"the scheduler has {self._reconcile()} allocations")
            except BalsamError as error:
                if self.stopped:
                    return
                if not error.transient:
                    raise
                log.warning("%s; trying again in %.1f s", error, pause)
                self.trouble(error, pause)
                self._wake.wait(pause)
                pause = min(2 * pause, _LAST_PAUSE)
                continue
            pause = _FIRST_PAUSE
            if not watcher.is_alive():
                raise BalsamError("lost the change feed")
            self._wake.wait(self._scheduler.poll_sec if self._seen else None)

    def _reconcile(self) -> int:
        """Take every batch job as far as it goes now; the number of those the scheduler still has."""
        jobs = self._unfinished()
        try:
            ids = {job.id: job.scheduler_id or self._scheduler.find(_key(job)) for job in jobs}
            self._seen = {scheduler_id for scheduler_id in ids.values() if scheduler_id}
            statuses = self._scheduler.statuses(self._seen)
        except SchedulerUnavailable as error:
            for job in jobs:
                self._explain(job, error)
            raise
        live = 0
        trouble: SchedulerUnavailable | None = None
        for job in jobs:
            try:
                live += self._advance(job, ids[job.id], statuses)
            except (NotFound, Conflict, IllegalTransition) as error:
                # Somebody else changed it at the same moment, and the feed will wake us for that.
                log.info("batch job %s: %s", job.id, error)
            except SchedulerUnavailable as error:
                self._explain(job, error)
                trouble = error  # the others get their turn first
        if trouble is not None:
            raise trouble
        return live

    def _unfinished(self) -> list[BatchJobRecord]:
        return list(every(self._service.batch_jobs, site_id=[self._site_id], state__ne=list(BATCH_JOB_ENDED)))

    def _advance(self, job: BatchJobRecord, scheduler_id: str | None, statuses: Mapping[str, Status]) -> bool:
        """Take one batch job as far as it goes; whether the scheduler has it now."""
        status = statuses.get(scheduler_id) if scheduler_id else None
        waits = scheduler_id is not None and job.state is not BatchJobState.RUNNING
        asked = self._scheduler.asked(_key(job)) if waits else []
        action = decide(job, scheduler_id, status, now(), asked=asked, draining=self._draining)
        if isinstance(action, Submit):
            try:
                scheduler_id = self._submit(job)
            except (SubmitRefused, OSError) as error:
                log.error("batch job %s could not be submitted: %s", job.id, error)
                failed = BatchJobState.SUBMIT_FAILED
                self._update(job, BatchJobPatch(state=failed, end_time=now(), status_info={"error": str(error)}))
                return False
            self._seen.add(scheduler_id)
            return self._advance(job, scheduler_id, self._scheduler.statuses([scheduler_id]))
        if isinstance(action, Cancel):
            log.info("batch job %s: cancelling %s", job.id, action.scheduler_id)
            self._scheduler.cancel(action.scheduler_id)
        elif isinstance(action, Modify):
            self._modify(job, action)
        elif isinstance(action, Update):
            self._update(job, action.patch)
            return action.patch.state not in BATCH_JOB_ENDED
        return scheduler_id is not None

    def _explain(self, job: BatchJobRecord, error: SchedulerUnavailable) -> None:
        """Say why a job waits to be submitted."""
        info = {"error": str(error)}
        if job.state is BatchJobState.PENDING_SUBMISSION and job.status_info != info:
            self._update(job, BatchJobPatch(status_info=info))

    def _update(self, job: BatchJobRecord, patch: BatchJobPatch) -> None:
        log.info("batch job %s: %s %s", job.id, patch.state or job.state, patch.status_info or patch.scheduler_id or "")
        self._service.patch_batch_job(job.id, patch)

    def _modify(self, job: BatchJobRecord, modify: Modify) -> None:
        before, after = (_spec(job, request, self._site) for request in (modify.before, modify.after))
        try:
            self._scheduler.modify(modify.scheduler_id, before, after)
        except ModifyRefused as error:
            self._update(job, refused(job, modify, str(error)))
        else:
            self._update(job, BatchJobPatch(submitted=modify.after))

    def _submit(self, job: BatchJobRecord) -> str:
        spec = _spec(job, job, self._site)
        script = self._site.qsubmit / f"{spec.key}.sh"
        script.write_text(render_script(job, self._site, self._scheduler.directives(spec)))
        script.chmod(0o755)
        return self._scheduler.submit(script, spec)


def _key(job: BatchJobRecord) -> str:
    """Unlike the id it is unique over all services that a site's directory may ever serve."""
    return f"{job.id}-{job.created.astimezone(UTC):%Y%m%dT%H%M%S}"


def _spec(job: BatchJobRecord, request: AllocationRequest, site: SiteDirectory) -> SubmitSpec:
    key = _key(job)
    return SubmitSpec.of(request, key, site.log / f"batch-job-{key}.log")


def render_script(job: BatchJobRecord, site: SiteDirectory, directives: list[str]) -> str:
    """The script of an allocation, from the site's job-template.sh; `directives` are lines that the scheduler reads.
    Raises SubmitRefused where the template cannot be filled in."""
    python = sys.executable
    launcher = [python, "-P", "-m", "balsam_exec.launcher", "--site", str(site.path), "--batch-job", str(job.id)]
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    try:
        return environment.from_string(site.job_template.read_text()).render(
            job=job,
            optional_params=job.optional_params,
            site_dir=str(site.path),
            python=python,
            launcher=shlex.join(launcher),
            directives="\n".join(directives),
        )
    except Exception as error:  # it is a program of the site's owner
        why = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise SubmitRefused(f"{site.job_template}: {why}") from error
