"""`balsam site`: where jobs run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from balsam_exec.cli.common import JsonOption, connect, group

app = group("Sites: directories on machines where jobs run.")


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="The directory to make; it may exist, but not be a site yet.")],
    name: Annotated[str, typer.Option("--name", "-n", help="The site's name, like theta-gpu.")],
    json: JsonOption = False,
) -> None:
    """Make a directory a site and register it with the service."""
    from balsam_exec.cli.output import print_one
    from balsam_exec.site.registration import init_site

    site = init_site(connect(), path, name)
    text = f"site {site.name} (id {site.id}) is at {site.path}; start its agent with: balsam site start {path}"
    print_one(site, text, json)


@app.command()
def start(
    path: Annotated[Path, typer.Argument(help="The site's directory.")] = Path("."),
) -> None:
    """Run the site's agent in the foreground until Ctrl-C or SIGTERM. Its allocations go on without it."""
    from balsam_exec.site.main import log_to_stderr, serve

    log_to_stderr("info")
    serve(path)


@app.command("ls")
def list_sites(json: JsonOption = False) -> None:
    """List your sites."""
    from balsam_exec.cli.output import print_records

    columns = {
        "ID": lambda site: site.id,
        "NAME": lambda site: site.name,
        "HOST": lambda site: site.hostname,
        "PATH": lambda site: site.path,
        "AGENT LAST HEARD": lambda site: site.last_refresh,
    }
    print_records(connect().sites(limit=1000).results, columns, json)
