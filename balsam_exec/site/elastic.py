"""The elastic queue: requests allocations for the jobs that wait at the site (seed 002 "Elastic scheduling"). And the
queue maintainer, which keeps a fixed number of them.

Both look at what there is, have `sizing` make a plan, and carry it out through the service; bringing allocations to the
scheduler is the business of `allocations`. They remember nothing: an agent that is killed leaves no trace but what it
requested, and that the next one finds.
"""

from __future__ import annotations

import logging
import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice, takewhile
from typing import Any

from balsam_exec.client.pages import every
from balsam_exec.client.service import Service
from balsam_exec.model.allowed import Allowed
from balsam_exec.model.backlog import Backlog, BacklogQuery
from balsam_exec.model.base import now
from balsam_exec.model.batch_jobs import BatchJobPatch, BatchJobRecord, BatchJobSpec, Origin
from balsam_exec.model.errors import Conflict, IllegalTransition, NotAllowed, NotFound
from balsam_exec.model.events import Kind
from balsam_exec.model.queries import FeedQuery
from balsam_exec.model.states import BATCH_JOB_ENDED, RUNNABLE, BatchJobState
from balsam_exec.platform.nodes import local_node
from balsam_exec.platform.schedulers import Window
from balsam_exec.platform.schedulers.base import SchedulerUnavailable
from balsam_exec.platform.settings import SiteSettings, SubmissionSettings
from balsam_exec.site import sizing
from balsam_exec.site.demand import Terms, allocations_of, work_of
from balsam_exec.site.part import Part
from balsam_exec.site.restraint import Restraint, last_accepted, restraint
from balsam_exec.site.sizing import Limits, Plan, Shape

log = logging.getLogger(__name__)

#: Seconds one long poll waits.
_POLL = 30.0
#: Of so many of the newest allocations that have ended is asked whether they did anything; they are looked for among
#: so many of the site's.
_REMEMBERED, _NEWEST = 9, 100
#: The event of a site whose record was changed, as by `balsam site sync` and whenever an agent starts.
_SYNCED = "updated"
#: After these events there may be more or less to do. That jobs end is seen at the next look.
_NEWS = [*sorted(RUNNABLE), *sorted(set(BatchJobState) - {BatchJobState.PENDING_SUBMISSION}), _SYNCED]


@dataclass(frozen=True)
class Facts:
    """What a plan is made from."""

    now: datetime
    backlog: Backlog
    living: Sequence[BatchJobRecord]  #: of the site, whoever requested them


class Provisioner(Part):
    """Requests allocations by itself. Looks when something has happened and then been quiet for a moment, and from
    time to time as long as there is something to look after. A look costs a few requests, however many jobs there
    are: what happens is not read, only that something does."""

    origin: Origin

    def __init__(
        self, service: Service, site_id: int, settings: SubmissionSettings, terms: Terms, allowed: Allowed
    ) -> None:
        super().__init__()
        self._service = service.sibling()  # connections of its own, to be cut when it is to stop
        self._site_id = site_id
        self._settings = settings
        self._terms = terms
        self._most = allowed.max_queued_jobs(settings.submit_queue)
        self._told = ""  #: why nothing is requested

    @abstractmethod
    def plan(self, facts: Facts) -> Plan:
        """What to do."""

    def run(self) -> None:
        while not self.stopped:
            cursor = self._service.feed(FeedQuery()).cursor  # from here on nothing is missed
            facts = self._look()
            plan = self.plan(facts)
            pause = self._carry_out(plan, facts)
            if not pause:
                self.progress(f"requested {len(plan.create)} allocations, took back {len(plan.delete)}")
            quiet = not facts.backlog.runnable and not facts.living
            self._await_news(cursor, math.inf if quiet else pause or self._settings.service_period)

    def stop(self) -> None:
        super().stop()
        self._service.close()

    def _room(self, wanted: int, facts: Facts) -> int:
        """For how many of its allocations its queue has room, of so many that it wants."""
        if self._most is None:
            return wanted
        queue = self._settings.submit_queue
        others = sum(record.queue == queue and record.origin != self.origin for record in facts.living)
        return max(0, min(wanted, self._most - others))

    def _look(self) -> Facts:
        tags = [f"{key}:{value}" for key, value in self._settings.filter_tags.items()]
        # The jobs last: what has been taken from the backlog since is held by an allocation that is known.
        living = list(self._batch_jobs(state__ne=list(BATCH_JOB_ENDED)))
        return Facts(now(), self._service.backlog(self._site_id, BacklogQuery(tags=tags)), living)

    def _batch_jobs(self, **lookups: Any) -> Iterator[BatchJobRecord]:
        return every(self._service.batch_jobs, site_id=[self._site_id], **lookups)

    def _carry_out(self, plan: Plan, facts: Facts) -> float:
        """Do what is planned. Seconds until what could not be requested yet may be, 0 if nothing is left to do."""
        for batch_job_id in plan.delete:
            log.info("%s: taking back batch job %d", self.name, batch_job_id)
            try:
                self._service.patch_batch_job(batch_job_id, BatchJobPatch(state=BatchJobState.PENDING_DELETION))
            except (NotFound, Conflict, IllegalTransition) as error:
                log.info("%s: batch job %d: %s", self.name, batch_job_id, error)  # it has just ended
        if not plan.create:
            return 0.0
        if held := self._restraint(facts):
            self._tell(held)
            return held.seconds
        try:
            for shape in plan.create:
                self._request(shape)
        except NotAllowed as error:  # the site's record says other than our settings, or somebody was quicker
            self._tell(Restraint(self._settings.service_period, str(error)))
            return self._settings.service_period
        self._told = ""
        return 0.0

    def _tell(self, held: Restraint) -> None:
        self.trouble(held.reason, held.seconds)
        if held.reason != self._told:
            again = "" if math.isinf(held.seconds) else f"; trying again in {held.seconds:.0f} s"
            log.warning("%s: %s%s", self.name, held.reason, again)
        self._told = held.reason

    def _restraint(self, facts: Facts) -> Restraint | None:
        ended = self._service.batch_jobs(
            site_id=[self._site_id], state=list(BATCH_JOB_ENDED), ordering="-id", limit=_NEWEST
        ).results
        own = filter(self._ran_or_was_refused, ended)
        in_vain = list(takewhile(self._was_in_vain, islice(own, _REMEMBERED)))
        if not in_vain:
            return None
        moments = [last_accepted([*facts.living, *ended]), self._last_synced()]
        return restraint(in_vain, max((at for at in moments if at is not None), default=None), facts.now)

    def _ran_or_was_refused(self, record: BatchJobRecord) -> bool:
        never_ran = record.state is BatchJobState.FINISHED and record.start_time is None
        return record.origin == self.origin and not never_ran

    def _was_in_vain(self, record: BatchJobRecord) -> bool:
        refused = record.state is BatchJobState.SUBMIT_FAILED
        return refused or not self._service.count_jobs(batch_job_id=[record.id])

    def _last_synced(self) -> datetime | None:
        """When the site's settings were brought to the service last."""
        found = self._service.events(
            kind=[Kind.SITE], subject_id=[self._site_id], to_state=[_SYNCED], ordering="-id", limit=1
        ).results
        return found[0].timestamp if found else None

    def _request(self, shape: Shape) -> None:
        settings = self._settings
        spec = BatchJobSpec(
            site_id=self._site_id,
            num_nodes=shape.num_nodes,
            wall_time_min=shape.wall_time_min,
            job_mode=settings.job_mode,
            queue=settings.submit_queue,
            project=settings.submit_project,
            optional_params=settings.optional_params,
            filter_tags=settings.filter_tags,
            origin=self.origin,
        )
        record = self._service.create_batch_job(spec)
        log.info("%s: batch job %d: %d nodes, %d min", self.name, record.id, shape.num_nodes, shape.wall_time_min)

    def _await_news(self, cursor: str, longest: float) -> None:
        """Wait for something to happen, and then for the moment that it takes to be over."""
        until = time.monotonic() + longest
        while not self.stopped and (left := until - time.monotonic()) > 0:
            query = FeedQuery(cursor=cursor, timeout=min(_POLL, left), limit=1, site_id=[self._site_id], to_state=_NEWS)
            feed = self._service.feed(query, deadline=math.inf)
            if feed.events:
                self.wait(self._settings.quiet_sec)
                return
            cursor = feed.cursor


class ElasticQueue(Provisioner):
    """Sizes allocations to the jobs that wait."""

    name = "elastic-queue"
    origin = "elastic_queue"

    def __init__(
        self,
        service: Service,
        site_id: int,
        settings: SubmissionSettings,
        terms: Terms,
        allowed: Allowed,
        limits: Limits,
        windows: Callable[[], Sequence[Window]] | None,
    ) -> None:
        """`windows` tells of nodes to be filled (backfill); None: they are not."""
        super().__init__(service, site_id, settings, terms, allowed)
        self._limits = limits
        self._windows = windows
        self._beyond = 0  #: jobs of which has been told that they fit no allocation

    def plan(self, facts: Facts) -> Plan:
        work = work_of(facts.backlog.runnable, self._terms)
        living = allocations_of(facts.living, facts.backlog.held, self.origin, self._terms, facts.now)
        limits = replace(self._limits, max_queued_jobs=self._room(self._limits.max_queued_jobs, facts))
        found = sizing.plan(work, living, limits, self._gaps() if work else ())
        beyond = found.beyond_limits
        if beyond and beyond != self._beyond:
            log.warning("%s: %d jobs want more nodes or time than its limits allow", self.name, beyond)
        self._beyond = beyond
        return found

    def _gaps(self) -> list[sizing.Window]:
        if self._windows is None:
            return []
        try:
            found = self._windows()
        except SchedulerUnavailable as error:
            log.warning("%s: %s", self.name, error)
            return []
        unlimited = self._limits.max_wall_time_min + self._limits.wall_time_pad_min
        return [
            sizing.Window(window.num_nodes, unlimited if window.wall_time_min is None else window.wall_time_min)
            for window in found
            if window.queue == self._settings.submit_queue
        ]


class QueueMaintainer(Provisioner):
    """Keeps a fixed number of allocations, waiting or running. While no job waits, what has ended is not replaced."""

    name = "queue-maintainer"
    origin = "queue_maintainer"

    def __init__(
        self,
        service: Service,
        site_id: int,
        settings: SubmissionSettings,
        terms: Terms,
        allowed: Allowed,
        wanted: int,
        shape: Shape,
    ) -> None:
        super().__init__(service, site_id, settings, terms, allowed)
        self._wanted = wanted
        self._shape = shape

    def plan(self, facts: Facts) -> Plan:
        if not work_of(facts.backlog.runnable, self._terms):
            return Plan()
        living = allocations_of(facts.living, facts.backlog.held, self.origin, self._terms, facts.now)
        return sizing.shortfall(self._room(self._wanted, facts), self._shape, living)


def provisioners(
    service: Service, site_id: int, settings: SiteSettings, windows: Callable[[], Sequence[Window]]
) -> list[Provisioner]:
    """Those that the site's settings switch on; `windows` asks its scheduler."""
    found: list[Provisioner] = []
    if (elastic := settings.elastic_queue).enabled:
        limits = Limits(**{name: getattr(elastic, name) for name in Limits.__slots__})
        terms = _terms(settings, elastic, limits.shortest)
        gaps = windows if elastic.use_backfill else None
        found.append(ElasticQueue(service, site_id, elastic, terms, settings.allowed, limits, gaps))
    if (kept := settings.queue_maintainer).enabled:
        shape = Shape(kept.num_nodes, kept.wall_time_min)
        terms = _terms(settings, kept, kept.wall_time_min)
        wanted = kept.num_queued_jobs
        found.append(QueueMaintainer(service, site_id, kept, terms, settings.allowed, wanted, shape))
    return found


def _terms(settings: SiteSettings, submission: SubmissionSettings, unknown_min: int) -> Terms:
    cores, gpus = settings.cores, settings.gpus
    if settings.scheduler == "local":  # the node is this machine
        node = local_node(cores, gpus)
        cores, gpus = node.cores, len(node.gpus)
    return Terms(
        job_mode=submission.job_mode,
        filter_tags=submission.filter_tags,
        cores=cores,
        gpus=gpus,
        bound=settings.cpu_affinity == "depth",
        unknown_min=unknown_min,
    )
