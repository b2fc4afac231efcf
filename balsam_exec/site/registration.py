"""Making a directory a site, and a site known to the service."""

from __future__ import annotations

import socket
from pathlib import Path

from balsam_exec.client.service import Service
from balsam_exec.model.errors import ConfigurationError, Conflict, NotFound
from balsam_exec.model.sites import SitePatch, SiteRecord, SiteSpec
from balsam_exec.platform.settings import SiteDirectory


def init_site(service: Service, path: Path, name: str) -> SiteRecord:
    """Register a new site under `name` and make `path` its directory.

    Raises ConfigurationError if the directory is a site already, Conflict if the name is taken.
    """
    site = SiteDirectory(path)
    if site.exists:
        raise ConfigurationError(
            f"{site.path} is a site already ({site.settings().name}): start it with `balsam site start`"
        )
    if service.sites(name=name).results:
        raise Conflict(f"there is a site {name!r} already: choose another --name")
    record = service.create_site(_spec(site, name))
    site.create(name, record.id)
    return record


def record_of(service: Service, site: SiteDirectory, *, register: bool) -> SiteRecord:
    """The service's record of the site. The id decides: the record may have been renamed.

    With `register` a site that this service does not know is registered; otherwise that raises ConfigurationError.
    """
    settings = site.settings()
    record = _known(service, settings.site_id)
    if register and (record is None or record.path != str(site.path)):
        found = service.sites(name=settings.name, path=str(site.path)).results
        record = found[0] if found else service.create_site(_spec(site, settings.name))
        site.record_id(record.id)
    if record is None:
        who = "it has no site_id" if settings.site_id is None else f"there is no site {settings.site_id}"
        raise ConfigurationError(
            f"{site.path} is not registered at {service.url} ({who}): `balsam site init` a new one"
        )
    return record


def update_record(service: Service, site_id: int, site: SiteDirectory) -> SiteRecord:
    """Tell the service where the site is, and what its allocations may ask for."""
    allowed = site.settings().allowed.model_dump()
    return service.patch_site(site_id, SitePatch(path=str(site.path), hostname=socket.gethostname(), **allowed))


def _known(service: Service, site_id: int | None) -> SiteRecord | None:
    if site_id is None:
        return None
    try:
        return service.site(site_id)
    except NotFound:
        return None


def _spec(site: SiteDirectory, name: str) -> SiteSpec:
    return SiteSpec(name=name, path=str(site.path), hostname=socket.gethostname())
