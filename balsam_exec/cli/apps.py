"""`balsam app`: what jobs run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from balsam_exec.cli import completion
from balsam_exec.cli.common import AtSiteOption, JsonOption, SiteOption, connect, group, of_site, site_names

if TYPE_CHECKING:
    from balsam_exec.client.service import Service
    from balsam_exec.model.apps import AppRecord

app = group("Apps: what jobs run. Python programs define them (ApplicationDefinition).")

AppArgument = Annotated[
    str, typer.Argument(help="Name or id of an app.", metavar="APP", autocompletion=completion.apps)
]


@app.command("ls")
def list_apps(
    site: SiteOption = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also commands, parameters, transfers.")] = False,
    json: JsonOption = False,
) -> None:
    """List apps."""
    from balsam_exec.cli.output import print_records

    service = connect()
    apps = service.apps(limit=1000, **of_site(service, site)).results
    names = {} if json else site_names(service)
    if verbose and not json:
        for item in apps:
            _describe(item, names.get(item.site_id, ""))
        return
    columns = {
        "ID": lambda app: app.id,
        "NAME": lambda app: app.name,
        "SITE": lambda app: names.get(app.site_id),
        "KIND": _kind,
    }
    print_records(apps, columns, json)


@app.command()
def show(wanted: AppArgument, site: AtSiteOption = None, json: JsonOption = False) -> None:
    """Show all there is to know of an app."""
    from balsam_exec.cli.output import print_fields

    service = connect()
    found = _found(service, wanted, site)
    if json:
        print_fields(found, json)
    else:
        print_fields(found, json, site=site_names(service).get(found.site_id))


@app.command("rm")
def remove(wanted: AppArgument, site: AtSiteOption = None, json: JsonOption = False) -> None:
    """Remove an app of which there are no jobs."""
    from balsam_exec.cli.output import print_one
    from balsam_exec.model.base import Count

    service = connect()
    found = _found(service, wanted, site)
    service.delete_app(found.id)
    print_one(Count(count=1), f"removed {found.name} (id {found.id})", json)


def _found(service: Service, wanted: str, site: str | None) -> AppRecord:
    from balsam_exec.cli.selection import one_site
    from balsam_exec.client.apps import app_named

    if wanted.isdecimal():
        return service.app(int(wanted))
    return app_named(service, wanted, site and one_site(service, site))


def _kind(app: AppRecord) -> str:
    return "python" if app.command_template is None else "command"


def _describe(app: AppRecord, site: str) -> None:
    print(f"{app.name} (id {app.id}) at {site}, {_kind(app)}, digest {app.digest[:12]}")
    if app.description:
        print(f"  {app.description.strip().splitlines()[0]}")
    if app.command_template:
        print(f"  command: {app.command_template}")
    for name, spec in app.parameters.items():
        print(f"  {name}: {'required' if spec.required else f'default {spec.default!r}'} {spec.help}".rstrip())
    for name, slot in app.transfers.items():
        needed = "required" if slot.required else "optional"
        print(f"  transfer {slot.direction} {name}: {slot.local_path}, {needed} {slot.description}".rstrip())
