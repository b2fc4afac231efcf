"""Batch schedulers, one module each, behind the port in `base`."""

from __future__ import annotations

from collections.abc import Callable

from balsam_exec.platform.schedulers.base import Scheduler, Status, SubmitSpec
from balsam_exec.platform.schedulers.local import LocalScheduler
from balsam_exec.platform.settings import SiteDirectory, SiteSettings

__all__ = ["LocalScheduler", "Scheduler", "Status", "SubmitSpec", "make_scheduler"]


def make_scheduler(settings: SiteSettings, site: SiteDirectory, on_change: Callable[[], None]) -> Scheduler:
    """The scheduler that the site's settings name."""
    return LocalScheduler(site.qsubmit, on_change=on_change, grace=settings.cancel_grace_sec)
