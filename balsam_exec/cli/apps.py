"""`balsam app`: what jobs run."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from balsam_exec.cli.common import JsonOption, SiteOption, connect, find_site, group

app = group("Apps: what jobs run. Python programs define them (ApplicationDefinition).")


@app.command("ls")
def list_apps(
    site: SiteOption = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also commands, parameters, description.")] = False,
    json: JsonOption = False,
) -> None:
    """List apps."""
    from balsam_exec.cli.output import print_json, print_rows

    service = connect()
    lookups: dict[str, Any] = {"site_id": [find_site(service, site).id]} if site else {}
    apps = service.apps(limit=1000, **lookups).results
    if json:
        print_json([item.model_dump(mode="json", exclude={"payload"}) for item in apps])
        return
    names = {record.id: record.name for record in service.sites(limit=1000).results}
    kinds = {item.id: "python" if item.command_template is None else "command" for item in apps}
    if not verbose:
        print_rows(("ID", "NAME", "SITE", "KIND"), [(a.id, a.name, names.get(a.site_id), kinds[a.id]) for a in apps])
        return
    for item in apps:
        print(f"{item.name} (id {item.id}) at {names.get(item.site_id)}, {kinds[item.id]}, digest {item.digest[:12]}")
        if item.description:
            print(f"  {item.description.strip().splitlines()[0]}")
        if item.command_template:
            print(f"  command: {item.command_template}")
        for name, spec in item.parameters.items():
            print(f"  {name}: {'required' if spec.required else f'default {spec.default!r}'} {spec.help}".rstrip())
