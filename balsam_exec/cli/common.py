"""What the commands share: the service to talk to, errors as one line, options that several have."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from balsam_exec.cli import completion
from balsam_exec.model.errors import BalsamError

if TYPE_CHECKING:
    from balsam_exec.client.service import Service

SiteOption = Annotated[
    str | None,
    typer.Option(
        "--site",
        "-s",
        help="Names or ids of sites, with commas; this, active, all.",
        metavar="SITE",
        autocompletion=completion.sites,
    ),
]
#: The one site that something is about.
AtSiteOption = Annotated[
    str | None,
    typer.Option(
        "--site", "-s", help="Name or id of the site, or this.", metavar="SITE", autocompletion=completion.site
    ),
]
TagOption = Annotated[
    list[str] | None, typer.Option("--tag", help="Only with this tag; several must all match.", metavar="KEY=VALUE")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, with the fields of the service's answers.")]
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


def of_site(service: Service, site: str | None) -> dict[str, Any]:
    """The lookup of what belongs to the sites that `--site` chooses; none for all."""
    from balsam_exec.cli.selection import chosen_sites

    return {} if site in (None, "all") else {"site_id": [found.id for found in chosen_sites(service, site)]}


def site_names(service: Service) -> dict[int, str]:
    return {site.id: site.name for site in service.sites(limit=1000).results}


def pairs(given: list[str] | None, option: str) -> dict[str, str]:
    """KEY=VALUE arguments as a dict."""
    found = {}
    for item in given or []:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"{item!r} is not KEY=VALUE", param_hint=option)
        found[key] = value
    return found


def tags(given: list[str] | None) -> dict[str, str]:
    """Tags as a dict, given as KEY=VALUE or, as the API writes them, KEY:VALUE."""
    return pairs([item if "=" in item else item.replace(":", "=", 1) for item in given or []], "--tag")


def json_object(text: str, option: str) -> dict[str, Any]:
    """A JSON object given to an option. Raises BadParameter."""
    found = json_value(text)
    if not isinstance(found, dict):
        raise typer.BadParameter(f"{text!r} is no JSON object", param_hint=option)
    return found


def json_list(text: str, option: str) -> list[Any]:
    """A JSON list given to an option."""
    found = json_value(text)
    if not isinstance(found, list):
        raise typer.BadParameter(f"{text!r} is no JSON list", param_hint=option)
    return found


def json_value(text: str) -> Any:
    """What the text is as JSON; a text that is no JSON stands for itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


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
