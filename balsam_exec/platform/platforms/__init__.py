"""Ready-made settings for kinds of machines and for machines that are known: one data file beside this for each.

A file says what it is about (`title`), where that is documented (`sources`), which `settings` of settings.yml differ
from the defaults, and what job-template.sh is to have: `directives`, lines for the batch scheduler, and `setup`, shell
commands before the launcher starts. What public documentation does not tell is not there.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from balsam_exec.model.errors import InvalidRequest
from balsam_exec.platform.settings.site import SiteSettings

_FILES = resources.files(__package__)
_SUFFIX = ".yml"


class Platform(BaseModel):
    """What a site on such a machine begins with; its owner may change all of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    sources: list[str] = []  #: pages of public documentation
    settings: dict[str, Any] = {}
    directives: list[str] = []
    setup: str = Field(default="", pattern=r"^(.*\n)*$")

    def settings_of(self, name: str, site_id: int | None = None) -> SiteSettings:
        """The settings of a new site of this kind."""
        return SiteSettings(name=name, site_id=site_id, **self.settings)


def names() -> list[str]:
    """The kinds that may be simple to look after first, then the machines."""
    found = sorted(file.name.removesuffix(_SUFFIX) for file in _FILES.iterdir() if file.name.endswith(_SUFFIX))
    return sorted(found, key=lambda name: bool(platform(name).sources))


def platform(name: str) -> Platform:
    """Raises InvalidRequest, which names those that there are."""
    file = _FILES / f"{name}{_SUFFIX}"
    if not name.replace("-", "").isalnum() or not file.is_file():
        raise InvalidRequest(f"there is no platform {name!r}; there are: {', '.join(names())}")
    return Platform.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
