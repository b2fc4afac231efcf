"""Sites that get another place or name, or go."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

from balsam_exec.client.lookups import build
from balsam_exec.client.pages import every
from balsam_exec.client.service import Service
from balsam_exec.model.errors import ConfigurationError, Conflict
from balsam_exec.model.queries import JobQuery
from balsam_exec.model.sites import SitePatch, SiteRecord
from balsam_exec.model.states import BATCH_JOB_ENDED
from balsam_exec.platform.settings import SiteDirectory
from balsam_exec.site.daemon import running
from balsam_exec.site.registration import record_of, update_record


def move_site(service: Service, site: SiteDirectory, target: Path) -> SiteRecord:
    """Move the directory and tell the service. Raises Conflict where somebody uses it, ConfigurationError."""
    record = record_of(service, site, register=False)
    check_idle(service, record)
    if (agent := running(site)) is not None:
        raise Conflict(f"an agent serves {site.path} (pid {agent.pid} on {agent.hostname}): stop it first")
    if target.exists():
        raise ConfigurationError(f"{target} exists already")
    try:
        shutil.move(site.path, target)
    except OSError as error:
        raise ConfigurationError(f"cannot move {site.path} to {target}: {error}") from error
    return update_record(service, record.id, SiteDirectory(target))


def rename_site(service: Service, site_id: int, name: str) -> tuple[SiteRecord, bool]:
    """The site with its new name, and whether settings.yml says so too. Raises Conflict if another one has the name."""
    record = service.patch_site(site_id, SitePatch(name=name))
    site = directory_here(record)
    if site is not None:
        site.record_name(name)
    return record, site is not None


def remove_site(service: Service, record: SiteRecord, files: SiteDirectory | None) -> None:
    """Remove its jobs, itself with all that belongs to it, and then its directory, if that is given."""
    service.delete_jobs(build(JobQuery, {"site_id": record.id}))
    service.delete_site(record.id)
    if files is not None:
        shutil.rmtree(files.path)


def check_idle(service: Service, record: SiteRecord) -> None:
    """Raise Conflict while the site's agent or an allocation of it is at work."""
    if record.active and record.agent is not None:
        agent = record.agent
        raise Conflict(f"the agent of site {record.name} runs (pid {agent.pid} on {agent.hostname}): stop it first")
    unfinished = [job.id for job in every(service.batch_jobs, site_id=[record.id], state__ne=list(BATCH_JOB_ENDED))]
    if unfinished:
        listed = ", ".join(map(str, unfinished))
        raise Conflict(
            f"site {record.name} has allocations that have not ended, {listed}: start its agent, `balsam queue rm` them"
        )


def directory_here(record: SiteRecord) -> SiteDirectory | None:
    """The site's directory, if it is on this machine."""
    site = SiteDirectory(Path(record.path))
    if record.path and record.hostname == socket.gethostname() and site.exists:
        return site if site.settings().site_id == record.id else None
    return None
