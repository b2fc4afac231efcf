"""A site's `settings.yml`, and the directory it is in (seed 001 "settings.yml")."""

from __future__ import annotations

from balsam_exec.platform.settings.directory import SiteDirectory
from balsam_exec.platform.settings.sections import (
    ElasticQueueSettings,
    FileCleanerSettings,
    ProcessingSettings,
    QueueMaintainerSettings,
    SubmissionSettings,
)
from balsam_exec.platform.settings.site import FILE_NAME, SchedulerName, SiteSettings

__all__ = [
    "FILE_NAME",
    "ElasticQueueSettings",
    "FileCleanerSettings",
    "ProcessingSettings",
    "QueueMaintainerSettings",
    "SchedulerName",
    "SiteDirectory",
    "SiteSettings",
    "SubmissionSettings",
]
