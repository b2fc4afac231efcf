"""`balsam site init`, `ls`, `mv`, `rename` and `rm`: sites as such."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from balsam_exec.cli import completion
from balsam_exec.cli.common import AtSiteOption, JsonOption, SiteOption, YesOption, confirm, connect


def _list_platforms(wanted: bool) -> None:
    if wanted:
        from balsam_exec.cli.output import print_rows
        from balsam_exec.platform.platforms import names, platform

        print_rows(("PLATFORM", "IS"), [(name, platform(name).title) for name in names()])
        raise typer.Exit


def init(
    path: Annotated[Path, typer.Argument(help="The directory to make; it may exist, but not be a site yet.")],
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="The site's name, like theta-gpu. [default: the directory's]")
    ] = None,
    platform: Annotated[
        str,
        typer.Option("--platform", "-p", help="The kind of machine.", autocompletion=completion.platforms),
    ] = "local",
    list_platforms: Annotated[
        bool,
        typer.Option("--list-platforms", callback=_list_platforms, is_eager=True, help="Show the kinds of machines."),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Make a directory a site and register it with the service."""
    from balsam_exec.cli.output import print_one
    from balsam_exec.platform import platforms
    from balsam_exec.site.registration import init_site

    kind = platforms.platform(platform)
    site = init_site(connect(), path, name or path.absolute().name, kind)
    look = "" if platform == "local" else f"look at {site.path}/settings.yml and job-template.sh, then "
    begin = f"start its agent with: balsam site start {shlex.quote(str(path))}"
    text = f"site {site.name} (id {site.id}) is at {site.path}; {look}{begin}"
    print_one(site, text, json)


def list_sites(site: SiteOption = None, json: JsonOption = False) -> None:
    """List your sites."""
    from balsam_exec.cli.output import print_records
    from balsam_exec.cli.selection import chosen_sites

    columns = {
        "ID": lambda site: site.id,
        "NAME": lambda site: site.name,
        "HOST": lambda site: site.hostname,
        "PATH": lambda site: site.path,
        "AGENT": lambda site: "active" if site.active else "silent" if site.agent else "stopped",
        "AGENT'S HOST": lambda site: site.agent and site.agent.hostname,
        "AGENT LAST HEARD": lambda site: site.last_refresh,
    }
    print_records(chosen_sites(connect(), site), columns, json)


def move(
    source: Annotated[Path, typer.Argument(help="The site's directory.")],
    target: Annotated[Path, typer.Argument(help="Its new place, which must not exist yet.")],
    json: JsonOption = False,
) -> None:
    """Move a site's directory, and tell the service. Not while its agent or an allocation runs."""
    from balsam_exec.cli.output import print_one
    from balsam_exec.platform.settings import SiteDirectory
    from balsam_exec.site.relocation import move_site

    record = move_site(connect(), SiteDirectory(source), target)
    print_one(record, f"site {record.name} (id {record.id}) is at {record.path}", json)


def rename(
    name: Annotated[str, typer.Argument(help="The new name.")], site: AtSiteOption = None, json: JsonOption = False
) -> None:
    """Give a site another name."""
    from balsam_exec.cli.output import print_one
    from balsam_exec.cli.selection import one_site
    from balsam_exec.site.relocation import rename_site

    service = connect()
    record, is_here = rename_site(service, one_site(service, site), name)
    note = "" if is_here else f"; its settings.yml, on {record.hostname or 'its machine'}, is yet to say so too"
    print_one(record, f"site {record.id} is {record.name} now{note}", json)


def remove(
    site: Annotated[
        str, typer.Argument(help="Name, id or directory of the site.", metavar="SITE", autocompletion=completion.sites)
    ],
    force: Annotated[bool, typer.Option("--force", help="Also while its agent or an allocation runs.")] = False,
    keep_files: Annotated[bool, typer.Option("--keep-files", help="Leave its directory as it is.")] = False,
    yes: YesOption = False,
    json: JsonOption = False,
) -> None:
    """Remove a site: its apps, its jobs, and its directory if that is on this machine."""
    from balsam_exec.cli.output import print_one
    from balsam_exec.cli.selection import one_site
    from balsam_exec.platform.settings import SiteDirectory
    from balsam_exec.site.registration import record_of
    from balsam_exec.site.relocation import check_idle, directory_here, remove_site

    service = connect()
    given = SiteDirectory(Path(site))
    record = record_of(service, given, register=False) if given.exists else service.site(one_site(service, site))
    if not force:
        check_idle(service, record)
    files = None if keep_files else directory_here(record)
    what = f" and {files.path}" if files else "; its files stay" if keep_files else f"; files on {record.hostname} stay"
    jobs = service.count_jobs(site_id=[record.id])
    confirm(f"Remove site {record.name} (id {record.id}) with its apps, its {jobs} jobs{what}?", yes)
    remove_site(service, record, files)
    print_one({"count": 1}, f"removed site {record.name}{what}", json)
