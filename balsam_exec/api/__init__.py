"""The modern API: sites, apps, jobs, allocations and events as objects (seed 001).

The classes belong to the configured service (`balsam up`, `balsam login`); `Client(service)` has those of any other.
"""

from __future__ import annotations

from balsam_exec.api.apps import App, ApplicationDefinition
from balsam_exec.api.batch_jobs import BatchJob
from balsam_exec.api.binding import Client
from balsam_exec.api.context import current_job
from balsam_exec.api.events import EventLog
from balsam_exec.api.jobs import Job, WaitResult
from balsam_exec.api.sites import Site
from balsam_exec.api.transfers import TransferItem
from balsam_exec.model.states import BatchJobState, JobState

__all__ = [
    "App",
    "ApplicationDefinition",
    "BatchJob",
    "BatchJobState",
    "Client",
    "EventLog",
    "Job",
    "JobState",
    "Site",
    "TransferItem",
    "WaitResult",
    "current_job",
]
