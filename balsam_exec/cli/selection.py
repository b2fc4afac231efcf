"""Which sites `--site` means: `this`, `active`, `all`, ids, names, or several of these with commas between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from balsam_exec.client.pages import every
from balsam_exec.client.service import Service
from balsam_exec.client.sites import site_id
from balsam_exec.model.errors import DoesNotExist, InvalidRequest
from balsam_exec.model.sites import SiteRecord
from balsam_exec.platform.settings import SiteDirectory

#: What stands for sites beside their names and ids.
WORDS = ("this", "active", "all")


def chosen_sites(service: Service, text: str | None) -> list[SiteRecord]:
    """The sites that are meant; without a text all of them. Raises DoesNotExist where there is none such."""
    sites = list(every(service.sites))
    return sites if text is None else pick(text, sites, lambda: this_site(service))


def one_site(service: Service, text: str | None) -> int:
    """The one site that is meant; without a text the one that the cwd is in, the configured one, or the only one.
    Raises InvalidRequest."""
    if text is None:
        return _around() or site_id(service)
    found = chosen_sites(service, text)
    if len(found) > 1:
        raise InvalidRequest(f"one site, please; {text!r} are {', '.join(site.name for site in found)}")
    return found[0].id


def pick(text: str, sites: Sequence[SiteRecord], this: Callable[[], int]) -> list[SiteRecord]:
    """Those of the sites that the text names, each once. Raises DoesNotExist, naming those that there are."""
    exact = [site for site in sites if site.name == text]  # a name may have commas
    words = [] if exact else [word.strip() for word in text.split(",")]
    found = {site.id: site for word in words for site in _named(word, sites, this)}
    return exact or list(found.values())


def _named(word: str, sites: Sequence[SiteRecord], this: Callable[[], int]) -> list[SiteRecord]:
    found = [site for site in sites if site.name == word]
    if found:
        return found
    match word:
        case "all":
            return list(sites)
        case "active":
            return [site for site in sites if site.active] or _none("no agent of a site was heard of lately", sites)
        case "this":
            wanted = this()
            return [site for site in sites if site.id == wanted] or _none(f"there is no site {wanted}", sites)
    if word.isdecimal():
        return [site for site in sites if site.id == int(word)] or _none(f"there is no site {word}", sites)
    return _none(f"no site named {word!r}", sites)


def _none(why: str, sites: Sequence[SiteRecord]) -> list[SiteRecord]:
    raise DoesNotExist(f"{why}; you have: {', '.join(site.name for site in sites[:20]) or 'none'}")


def this_site(service: Service) -> int:
    """The id of the site that the cwd is in, or else of the configured one. Raises InvalidRequest, DoesNotExist."""
    if (around := _around()) is not None:
        return around
    if service.default_site is None:
        raise InvalidRequest("the cwd is not in a site, and BALSAM_SITE is not set")
    return site_id(service)


def _around() -> int | None:
    site = SiteDirectory.around(Path.cwd())
    return None if site is None else site.settings().site_id
