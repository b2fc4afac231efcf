"""`balsam site start`, `stop`, `status` and `sync`: the agent of a site."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from balsam_exec.cli.common import JsonOption, SiteOption, connect

if TYPE_CHECKING:
    from balsam_exec.model.sites import SiteRecord
    from balsam_exec.platform.settings import SiteDirectory

PathArgument = Annotated[Path | None, typer.Argument(help="The site's directory. [default: that of the cwd]")]


def start(
    path: PathArgument = None,
    foreground: Annotated[
        bool, typer.Option("--foreground", "-f", help="Stay until Ctrl-C or SIGTERM, and log to the standard error.")
    ] = False,
    timeout: Annotated[float, typer.Option("--timeout", min=0, help="Seconds to wait until it serves the site.")] = 30,
    json: JsonOption = False,
) -> None:
    """Start the site's agent in the background, and wait until it serves the site or can say why it does not."""
    site = directory(path)
    site.settings()
    if foreground:
        from balsam_exec.site.main import log_to_stderr, serve

        log_to_stderr("info")
        serve(site.path)
        return
    from balsam_exec.cli.output import print_one
    from balsam_exec.site import daemon

    connect()  # so that it is said here if no service is configured
    agent = daemon.start(site, timeout)
    print_one(
        agent, f"the agent serves {site.path}: pid {agent.pid} on {agent.hostname}, log {site.log}/agent.log", json
    )


def stop(
    path: PathArgument = None,
    drain: Annotated[bool, typer.Option("--drain", help="End the site's allocations first.")] = False,
    json: JsonOption = False,
) -> None:
    """Stop the agent that this machine runs for the site. Its allocations go on; the next agent finds them again."""
    from balsam_exec.cli.output import print_one
    from balsam_exec.site import daemon

    site = directory(path)
    agent = daemon.stop(site, drain=drain)
    if agent is None:
        print_one({"stopped": False}, f"no agent serves {site.path} from here", json)
        return
    rest = "its allocations have ended" if drain else "its allocations, if any, go on"
    print_one({"stopped": True}, f"stopped: pid {agent.pid}; {rest}", json)


def sync(path: PathArgument = None, json: JsonOption = False) -> None:
    """Tell the service what settings.yml says of the site; a running agent takes the settings over, whatever machine
    it is on. Allocations that run go on as they began."""
    from balsam_exec.cli.output import print_one
    from balsam_exec.site.registration import record_of, update_record

    site = directory(path)
    service = connect()
    before = record_of(service, site, register=False)
    record = update_record(service, before.id, site, rename=True)
    agent = record.agent if record.active else None
    who = (
        "no agent runs" if agent is None else f"its agent on {agent.hostname} (pid {agent.pid}) takes the settings over"
    )
    print_one(record, f"the service knows site {record.name} (id {record.id}) as it is now; {who}", json)


def status(site: SiteOption = None, json: JsonOption = False) -> None:
    """Show how the agents of sites get on, part by part. The exit code is 0 only when all is well."""
    from balsam_exec.cli.output import print_json, print_rows
    from balsam_exec.cli.selection import chosen_sites

    sites = chosen_sites(connect(), site)
    if json:
        print_json(sites)
    else:
        columns = ("SITE", "PART", "STATE", "PROGRESS", "AT", "LAST ERROR", "AT", "AGAIN AT")
        print_rows(columns, [row for record in sites for row in _rows(record)])
    well = all(s.active and s.agent and all(p.state == "running" for p in s.agent.parts) for s in sites)
    raise typer.Exit(0 if well else 1)


def _rows(site: SiteRecord) -> Iterator[tuple[Any, ...]]:
    agent = site.agent
    if agent is None:
        yield site.name, "agent", "stopped", "", site.last_refresh, "", None, None
        return
    where = f"on {agent.hostname}, pid {agent.pid}, since {agent.started:%Y-%m-%d %H:%M} UTC"
    yield site.name, "agent", "active" if site.active else "silent", where, site.last_refresh, "", None, None
    for part in agent.parts:
        told = (part.progress, part.progress_time, part.error, part.error_time, part.retry)
        yield site.name, part.name, part.state if site.active else "unknown", *told


def directory(path: Path | None) -> SiteDirectory:
    """The site at `path`, or the one that the cwd is in. Raises ConfigurationError."""
    from balsam_exec.model.errors import ConfigurationError
    from balsam_exec.platform.settings import SiteDirectory

    if path is not None:
        return SiteDirectory(path)
    if (around := SiteDirectory.around(Path.cwd())) is None:
        raise ConfigurationError("the cwd is not in a site: give the site's directory, or make one: balsam site init")
    return around
