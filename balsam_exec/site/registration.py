"""Making a directory a site, and a site known to the service."""

from __future__ import annotations

import socket
from pathlib import Path

from balsam_exec.client.service import Service
from balsam_exec.model.errors import ConfigurationError, Conflict, NotFound
from balsam_exec.model.sites import SitePatch, SiteRecord, SiteSpec
from balsam_exec.platform.platforms import Platform
from balsam_exec.platform.settings import SiteDirectory, SiteSettings

#: What of a site its settings.yml and its directory decide.
_TOLD = {"path", "hostname", "allowed_queues", "allowed_projects", "optional_batch_job_params"}


def init_site(service: Service, path: Path, name: str, platform: Platform | None = None) -> SiteRecord:
    """Register a new site under `name` and make `path` its directory.

    Raises ConfigurationError if the directory is a site already or cannot be made, Conflict if the name is taken.
    """
    site = SiteDirectory(path)
    if site.exists:
        raise ConfigurationError(
            f"{site.path} is a site already ({site.settings().name}): start it with `balsam site start`"
        )
    if service.sites(name=name).results:
        raise Conflict(f"there is a site {name!r} already: choose another --name")
    site.make()  # before it is registered: it may not be possible
    record = service.create_site(_spec(site, (platform.settings_of if platform else SiteSettings)(name=name)))
    site.create(name, record.id, platform)
    return record


def record_of(service: Service, site: SiteDirectory, *, register: bool) -> SiteRecord:
    """The service's record of the site. The id decides: the record may have been renamed.

    With `register` a site that this service does not know is registered; otherwise that raises ConfigurationError.
    """
    settings = site.settings()
    record = _known(service, settings.site_id)
    if register and (record is None or record.path != str(site.path)):
        found = service.sites(name=settings.name, path=str(site.path)).results
        record = found[0] if found else service.create_site(_spec(site, settings))
        site.record_id(record.id)
    if record is None:
        who = "it has no site_id" if settings.site_id is None else f"there is no site {settings.site_id}"
        raise ConfigurationError(
            f"{site.path} is not registered at {service.url} ({who}): `balsam site init` a new one"
        )
    return record


def update_record(service: Service, site_id: int, site: SiteDirectory, *, rename: bool = False) -> SiteRecord:
    """Tell the service where the site is and what it allows; with `rename` also that its name is that in settings.yml.

    Raises Conflict if another site has the name.
    """
    settings = site.settings()
    told = _spec(site, settings).model_dump(include=_TOLD | {"name"} if rename else _TOLD)
    return service.patch_site(site_id, SitePatch.model_validate(told))


def _known(service: Service, site_id: int | None) -> SiteRecord | None:
    if site_id is None:
        return None
    try:
        return service.site(site_id)
    except NotFound:
        return None


def _spec(site: SiteDirectory, settings: SiteSettings) -> SiteSpec:
    return SiteSpec(
        name=settings.name,
        path=str(site.path),
        hostname=socket.gethostname(),
        allowed_queues=settings.allowed_queues,
        allowed_projects=settings.allowed_projects,
        optional_batch_job_params=settings.optional_batch_job_params,
    )
