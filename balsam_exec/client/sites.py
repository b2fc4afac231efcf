"""Which site is meant."""

from __future__ import annotations

from typing import Any

from balsam_exec.client.service import Service
from balsam_exec.model.errors import DoesNotExist, InvalidRequest


def site_id(service: Service, site: Any = None) -> int:
    """The id of a site given by id, name or object; for None of the configured one, or of the only one.

    Raises DoesNotExist, and InvalidRequest when there is no saying which. Ids are taken as they are.
    """
    if site is None:
        site = service.default_site or _only_one(service)
    if isinstance(site, int):
        return site
    if isinstance(site, str):
        found = service.sites(name=site, limit=1).results
        if found:
            return found[0].id
        if site.isdecimal():
            return int(site)
        raise DoesNotExist(f"no site named {site!r}; you have: {_names(service)}")
    if isinstance(found_id := getattr(site, "id", None), int):
        return found_id
    raise InvalidRequest(f"a site is given by its name, id or a saved Site object, not by {site!r}")


def _only_one(service: Service) -> int:
    mine = service.sites(limit=2).results
    if len(mine) == 1:
        return mine[0].id
    raise InvalidRequest(f"which site? Name one, or set BALSAM_SITE; you have: {_names(service)}")


def _names(service: Service) -> str:
    return ", ".join(site.name for site in service.sites(limit=20).results) or "none"
