"""What the commands share: the service to talk to, errors as one line, options that several have."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from balsam_exec.model.errors import BalsamError, DoesNotExist, MultipleObjectsReturned

if TYPE_CHECKING:
    from balsam_exec.client.service import Service
    from balsam_exec.model.apps import AppRecord
    from balsam_exec.model.sites import SiteRecord

SiteOption = Annotated[str | None, typer.Option("--site", "-s", help="Name or id of a site.", metavar="SITE")]
TagOption = Annotated[
    list[str] | None, typer.Option("--tag", help="Only with this tag; several must all match.", metavar="KEY=VALUE")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


class Commands(TyperGroup):
    """A group whose commands end with one red line and exit code 1 where they raise one of our errors."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BalsamError as error:
            fail(str(error))
        except ValueError as error:
            if not _is_validation(error):
                raise
            fail("; ".join(_problems(error)), code=2)


def fail(message: str, code: int = 1) -> None:
    typer.secho(f"balsam: {message}", fg="red", err=True)
    raise typer.Exit(code)


def _is_validation(error: ValueError) -> bool:
    from pydantic import ValidationError

    return isinstance(error, ValidationError)


def _problems(error: Any) -> list[str]:
    return [f"{'.'.join(map(str, item['loc'])) or 'value'}: {item['msg']}" for item in error.errors()]


def group(text: str) -> typer.Typer:
    """A noun of the command line, with its help text."""
    return typer.Typer(help=text, no_args_is_help=True, cls=Commands, rich_markup_mode=None)


def connect() -> Service:
    """The configured service. Raises ConfigurationError, which says how to get one."""
    from balsam_exec.client.config import load_service

    return load_service()


def find_site(service: Service, wanted: str | None) -> SiteRecord:
    """The site of this name or id; without one the default site, or the only one there is."""
    wanted = wanted or service.default_site
    if wanted is None:
        sites = service.sites(limit=2).results
        if len(sites) == 1:
            return sites[0]
        raise DoesNotExist("which site? give --site (see `balsam site ls`)" if sites else "there are no sites yet")
    if wanted.isdigit():
        return service.site(int(wanted))
    found = service.sites(name=wanted).results
    if not found:
        raise DoesNotExist(f"there is no site {wanted!r} (see `balsam site ls`)")
    return found[0]


def find_app(service: Service, name: str, site: str | None) -> AppRecord:
    """The app of this name, at the given site or else at the only one that has it, or at the default site."""
    lookups: dict[str, Any] = {"site_id": [find_site(service, site).id]} if site else {}
    found = service.apps(name=name, **lookups).results
    if len(found) > 1:
        default = find_site(service, None).id
        found = [app for app in found if app.site_id == default]
        if not found:
            raise MultipleObjectsReturned(f"several sites have an app {name!r}: give --site")
    if not found:
        raise DoesNotExist(f"there is no app {name!r} (see `balsam app ls`)")
    return found[0]


def pairs(given: list[str] | None, option: str) -> dict[str, str]:
    """KEY=VALUE arguments as a dict."""
    found = {}
    for item in given or []:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"{item!r} is not KEY=VALUE", param_hint=option)
        found[key] = value
    return found


def confirm(question: str, yes: bool) -> None:
    """Ask a person, unless told not to; a program must say --yes."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("there is nobody to ask: give --yes", param_hint="--yes")
    typer.confirm(question, abort=True)


def ask_secret(what: str, *, confirm: bool = False) -> str:
    """A password or token: asked for without showing it, or a line of the standard input; never an argument."""
    if sys.stdin.isatty():
        secret: str = typer.prompt(what, hide_input=True, confirmation_prompt=confirm)
        return secret
    return sys.stdin.readline().rstrip("\n")
