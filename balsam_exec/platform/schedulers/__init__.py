"""Batch schedulers, one module each, behind the port in `base`."""

from __future__ import annotations

from collections.abc import Callable

from balsam_exec.platform.schedulers.base import Scheduler, Status, SubmitSpec, Window
from balsam_exec.platform.schedulers.flux import FluxScheduler
from balsam_exec.platform.schedulers.local import LocalScheduler
from balsam_exec.platform.schedulers.lsf import LsfScheduler
from balsam_exec.platform.schedulers.pbs import PbsScheduler
from balsam_exec.platform.schedulers.slurm import SlurmScheduler
from balsam_exec.platform.settings import SiteDirectory, SiteSettings

__all__ = [
    "FluxScheduler",
    "LocalScheduler",
    "LsfScheduler",
    "PbsScheduler",
    "Scheduler",
    "SlurmScheduler",
    "Status",
    "SubmitSpec",
    "Window",
    "make_scheduler",
]


def make_scheduler(settings: SiteSettings, site: SiteDirectory, on_change: Callable[[], None]) -> Scheduler:
    """The scheduler that the site's settings name."""
    directory, poll, grace = site.qsubmit, settings.scheduler_poll_sec, settings.cancel_grace_sec
    match settings.scheduler:
        case "local":
            return LocalScheduler(directory, on_change=on_change, grace=grace)
        case "slurm":
            return SlurmScheduler(directory, poll_sec=poll, grace=grace)
        case "pbs":
            return PbsScheduler(directory, poll_sec=poll)
        case "lsf":
            return LsfScheduler(directory, poll_sec=poll)
        case "flux":
            return FluxScheduler(directory, poll_sec=poll)
