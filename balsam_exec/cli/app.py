"""The tree of commands."""

from __future__ import annotations

from typing import Annotated

import typer

from balsam_exec._version import __version__
from balsam_exec.cli import apps, auth, deployment, jobs, queue, server, sites
from balsam_exec.cli.common import Commands

app = typer.Typer(
    name="balsam",
    help="Run large campaigns on supercomputers. Begin with `balsam up`.",
    no_args_is_help=True,
    cls=Commands,
    rich_markup_mode=None,  # importing Rich for the help alone would double its time
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"balsam {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


for command in (deployment.up, deployment.down, deployment.status, auth.login):
    app.command()(command)
for name, noun in {
    "job": jobs.app,
    "app": apps.app,
    "queue": queue.app,
    "site": sites.app,
    "token": auth.app,
    "server": server.app,
}.items():
    app.add_typer(noun, name=name)
