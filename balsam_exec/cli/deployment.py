"""`balsam up`, `down`, `status`: a deployment of your own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from balsam_exec.cli.common import JsonOption

HomeOption = Annotated[
    Path | None, typer.Option("--home", help="Where it keeps everything. [default: $BALSAM_HOME or ~/.balsam]")
]


def up(
    database: Annotated[
        str | None,
        typer.Option(help="Like postgresql+psycopg://me@host/balsam; it is remembered. [default: SQLite]"),
    ] = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Start a service, a local site and its agent for yourself on this machine, until `balsam down`."""
    from balsam_exec.cli.output import print_one
    from balsam_exec.embedded import Deployment
    from balsam_exec.embedded.deployment import default_home

    home = home or default_home()
    former = _configured(home)
    deployment = Deployment.start(home, database=database)
    how = "up" if deployment.started else "already up"
    about = {
        "url": deployment.url,
        "site": deployment.site,
        "home": str(deployment.home),
        "started": deployment.started,
    }
    print_one(about, f"{how}: {deployment.url}, site {deployment.site} in {deployment.home}", json)
    if former not in (None, deployment.url):
        typer.echo(f"this is now the service you use, instead of {former}; to go back: balsam login {former}", err=True)


def _configured(home: Path) -> str | None:
    """The URL of the service that this user has used so far."""
    from balsam_exec.client.config import load_credentials
    from balsam_exec.model.errors import ConfigurationError

    try:
        return load_credentials({"BALSAM_HOME": str(home)}).url
    except ConfigurationError:
        return None


def down(home: HomeOption = None, json: JsonOption = False) -> None:
    """Stop what `balsam up` started. Jobs that run will run again after the next one; nothing is lost."""
    from balsam_exec.cli.output import print_one
    from balsam_exec.embedded.deployment import default_home, stop

    stopped = stop(home or default_home())
    print_one({"stopped": stopped}, "down" if stopped else "it was not up", json)


def status(home: HomeOption = None, json: JsonOption = False) -> None:
    """Show the health of each part. The exit code is 0 only when all is well."""
    import os

    from balsam_exec.cli.output import print_json, print_rows
    from balsam_exec.embedded.deployment import default_home
    from balsam_exec.embedded.status import status as ask

    if home is not None:
        os.environ["BALSAM_HOME"] = str(home)
    found = ask(default_home())
    if json:
        print_json(found.as_json())
    else:
        print_rows(("PART", "HEALTH", "DETAIL"), [(p.name, "ok" if p.ok else "down", p.detail) for p in found.parts])
        for title, counts in (("allocations", found.allocations), ("jobs", found.jobs)):
            if found.url and any(part.name == "service" and part.ok for part in found.parts):
                told = ", ".join(f"{count} {state}" for state, count in counts.items())
                print(f"{title}: {told or 'none'}")
    raise typer.Exit(0 if found.healthy else 1)
