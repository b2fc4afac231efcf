"""Which app is meant."""

from __future__ import annotations

from typing import Any

from balsam_exec.client.service import Service
from balsam_exec.client.sites import site_id
from balsam_exec.model.apps import AppRecord
from balsam_exec.model.errors import DoesNotExist, InvalidRequest


def app_named(service: Service, name: str, site: Any = None) -> AppRecord:
    """The app of this name at `site` (an id, name or object); for None wherever it is the only one, or else at the
    configured site.

    Raises DoesNotExist, and InvalidRequest when there is no saying which.
    """
    here: list[int] = [] if site is None else [site_id(service, site)]
    found = service.apps(name=name, site_id=here).results
    if len(found) > 1 and service.default_site:
        default = site_id(service)
        found = [app for app in found if app.site_id == default] or found
    if len(found) == 1:
        return found[0]
    if found:
        sites = ", ".join(str(app.site_id) for app in found)
        raise InvalidRequest(f"several sites have an app {name} (those with the ids {sites}): say which site")
    raise DoesNotExist(
        f"there is no app {name!r}{'' if site is None else f' at site {site}'}; an app is there once synced"
    )
