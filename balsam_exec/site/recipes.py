"""Which parts an agent has, by the settings of its site."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from balsam_exec.client.service import Service
from balsam_exec.model.sites import SiteRecord
from balsam_exec.platform.schedulers import Window
from balsam_exec.platform.settings import SiteDirectory, SiteSettings
from balsam_exec.site.allocations import Allocations
from balsam_exec.site.cleaner import FileCleaner
from balsam_exec.site.elastic import provisioners
from balsam_exec.site.files import Files
from balsam_exec.site.part import Part
from balsam_exec.site.processing import Processing

#: Settings that only concern other parts, or none.
_OTHERS = {"name", "processing", "file_cleaner", "elastic_queue", "queue_maintainer"}


@dataclass(frozen=True)
class Recipe:
    """How a part is made, and what of the settings goes into it: where that changes, it is made anew."""

    settings: Any
    make: Callable[[], Part]


def recipes(
    service: Service,
    record: SiteRecord,
    site: SiteDirectory,
    settings: SiteSettings,
    windows: Callable[[], Sequence[Window]],
) -> dict[str, Recipe]:
    """The parts that work for the site, by name; `windows` asks its scheduler for idle nodes."""
    site_id, data = record.id, site.data
    found = {
        Allocations.name: Recipe(
            settings.model_dump(exclude=_OTHERS), lambda: Allocations(service, site_id, site, settings)
        ),
        Files.name: Recipe(None, lambda: Files(service, site_id, data)),
        Processing.name: Recipe(settings.processing, lambda: Processing(service, site_id, data, settings.processing)),
    }
    if settings.file_cleaner.enabled:
        found[FileCleaner.name] = Recipe(None, lambda: FileCleaner(service, record, site))
    for part in provisioners(service, site_id, settings, windows):  # they remember nothing
        found[part.name] = Recipe(settings, _made(part))
    return found


def _made(part: Part) -> Callable[[], Part]:
    return lambda: part
