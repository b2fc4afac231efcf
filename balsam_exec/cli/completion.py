"""What the shell may complete, beyond commands and options: names that only the service knows.

Completion happens while somebody types, so it gives up soon, and never complains.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from balsam_exec.client.service import Service

#: Seconds that the service may take.
_PATIENCE = 2.0


def sites(incomplete: str) -> list[str]:
    """What chooses sites; after a comma the next one."""
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{word}" for word in _beginning(last, ["active", "all", *_site_names(), "this"])]


def site(incomplete: str) -> list[str]:
    """What chooses one site."""
    return _beginning(incomplete, [*_site_names(), "this"])


def _site_names() -> list[str]:
    return _asked(lambda service: [site.name for site in service.sites(limit=1000).results])


def platforms(incomplete: str) -> list[str]:
    """Kinds of machines."""
    from balsam_exec.platform.platforms import names

    return _beginning(incomplete, names())


def apps(incomplete: str) -> list[str]:
    """Names of apps."""
    return _beginning(incomplete, _asked(lambda service: [app.name for app in service.apps(limit=1000).results]))


def changes(incomplete: str) -> list[str]:
    """Fields that `balsam job modify --set` changes."""
    from balsam_exec.cli.changes import FIELDS

    return _beginning(incomplete, [f"{name}=" for name in FIELDS])


def _asked(question: Callable[[Service], list[str]]) -> list[str]:
    from balsam_exec.client.config import load_credentials
    from balsam_exec.client.service import Service
    from balsam_exec.model.errors import BalsamError

    try:
        found = load_credentials()
        service = Service(found.url, found.token.get_secret_value(), deadline=_PATIENCE)
        return sorted(set(question(service)))
    except BalsamError:
        return []


def _beginning(start: str, words: list[str]) -> list[str]:
    return [word for word in words if word.startswith(start)]
