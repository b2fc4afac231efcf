"""When an allocation is taken away."""

from __future__ import annotations

import logging
import queue
import threading
import time
from datetime import UTC, datetime

from balsam_exec.model.batch_jobs import BatchJobRecord
from balsam_exec.model.errors import BalsamError
from balsam_exec.platform.settings import SiteDirectory, SiteSettings

log = logging.getLogger(__name__)

#: Seconds that the scheduler has to say it; jobs could run meanwhile.
_PATIENCE = 5.0


def end_of_allocation(
    batch_job: BatchJobRecord, site: SiteDirectory, settings: SiteSettings, scheduler_id: str | None
) -> float:
    """In Unix time: as its batch scheduler says, if it says so soon, else reckoned from what was asked for.

    `scheduler_id` is that of the allocation we are in; None: no batch scheduler gave it.
    """
    left = None
    if scheduler_id is not None and settings.scheduler != "local":
        left = _asked(site, settings, scheduler_id)
    return time.time() + (time_left(batch_job, datetime.now(UTC)) if left is None else left)


def time_left(batch_job: BatchJobRecord, now: datetime) -> float:
    """Seconds until the allocation is taken away, by what was asked for and when it was seen to start."""
    wall_time = batch_job.wall_time_min * 60.0
    elapsed = (now - batch_job.start_time).total_seconds() if batch_job.start_time else 0.0
    return wall_time - max(0.0, elapsed)


def _asked(site: SiteDirectory, settings: SiteSettings, scheduler_id: str) -> float | None:
    """The seconds that the scheduler gives it. Its commands may hang for longer than we wait."""
    from balsam_exec.platform.schedulers import make_scheduler  # launchers of this machine need none

    answers: queue.SimpleQueue[float | None] = queue.SimpleQueue()

    def ask() -> None:
        scheduler = make_scheduler(settings, site, on_change=lambda: None)
        try:
            answers.put(scheduler.statuses([scheduler_id])[scheduler_id].time_left)
        except BalsamError as error:
            log.warning("the time left is not known: %s", error)
            answers.put(None)
        finally:
            scheduler.close()

    threading.Thread(target=ask, name="time-left", daemon=True).start()
    try:
        return answers.get(timeout=_PATIENCE)
    except queue.Empty:
        log.warning("the scheduler does not say in %g s how much time is left", _PATIENCE)
        return None
