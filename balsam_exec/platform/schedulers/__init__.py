"""Batch schedulers, one module each, behind the port in `base`."""

from __future__ import annotations

from collections.abc import Callable

from balsam_exec.platform.schedulers.base import Scheduler, Status, SubmitSpec, Window
from balsam_exec.platform.schedulers.commands import CommandScheduler
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

_WITHOUT_OPTIONS: dict[str, type[CommandScheduler]] = {"pbs": PbsScheduler, "lsf": LsfScheduler, "flux": FluxScheduler}


def make_scheduler(settings: SiteSettings, site: SiteDirectory, on_change: Callable[[], None]) -> Scheduler:
    """The scheduler that the site's settings name."""
    match settings.scheduler:
        case "local":
            return LocalScheduler(site.qsubmit, on_change=on_change, grace=settings.cancel_grace_sec)
        case "slurm":
            return SlurmScheduler(site.qsubmit, poll_sec=settings.scheduler_poll_sec, grace=settings.cancel_grace_sec)
        case name:
            return _WITHOUT_OPTIONS[name](site.qsubmit, poll_sec=settings.scheduler_poll_sec)
