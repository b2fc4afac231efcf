"""`balsam job create`."""

from __future__ import annotations

from typing import Annotated

import typer

from balsam_exec.cli import completion
from balsam_exec.cli.common import AtSiteOption, JsonOption, connect, json_object, pairs, tags
from balsam_exec.cli.wait import wait_for
from balsam_exec.model.states import OnParentFailure


def create(
    app: Annotated[str, typer.Option("--app", help="The app to run; a command.", autocompletion=completion.apps)],
    workdir: Annotated[str, typer.Option("--workdir", "-w", help="Its directory, below the site's data/.")],
    param: Annotated[list[str] | None, typer.Option("--param", "-p", help="A parameter.", metavar="KEY=VALUE")] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="A tag.", metavar="KEY=VALUE")] = None,
    site: AtSiteOption = None,
    parent: Annotated[list[int] | None, typer.Option(help="A job that has to finish first.", metavar="ID")] = None,
    on_parent_failure: Annotated[
        OnParentFailure, typer.Option(help="What becomes of it when a parent fails or is killed.")
    ] = OnParentFailure.FAIL,
    input_file: Annotated[
        list[str] | None, typer.Option(help="Files of the parents' workdirs that it needs.", metavar="GLOB")
    ] = None,
    transfer: Annotated[
        list[str] | None, typer.Option(help="A file to stage in or out.", metavar="SLOT=LOCATION:PATH")
    ] = None,
    nodes: Annotated[int, typer.Option("--num-nodes", "--nodes", min=1, help="Nodes.")] = 1,
    ranks_per_node: Annotated[int, typer.Option(min=1, help="Processes on each node.")] = 1,
    threads_per_rank: Annotated[int, typer.Option(min=1, help="Threads of each process.")] = 1,
    threads_per_core: Annotated[int, typer.Option(min=1, help="Of these, on each core.")] = 1,
    gpus_per_rank: Annotated[float, typer.Option(min=0, help="GPUs of each process.")] = 0,
    node_packing_count: Annotated[int, typer.Option(min=1, help="How many such jobs may share a node.")] = 1,
    wall_time_min: Annotated[int, typer.Option(min=0, help="Minutes it takes; 0: unknown.")] = 0,
    launch_param: Annotated[
        list[str] | None, typer.Option(help="An extra option of the MPI launcher.", metavar="KEY=VALUE")
    ] = None,
    data: Annotated[str, typer.Option(help="What its hooks are to know, as a JSON object.", metavar="JSON")] = "{}",
    stdout: Annotated[str, typer.Option(help="The file of its workdir for what it prints; job.out.")] = "",
    stderr: Annotated[str, typer.Option(help="A file for its stderr alone.")] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its end, as `balsam job wait` does.")] = False,
    json: JsonOption = False,
) -> None:
    """Make a job of a command app, and print its id."""
    from balsam_exec.cli.output import print_one
    from balsam_exec.cli.selection import one_site
    from balsam_exec.client.apps import app_named
    from balsam_exec.model.apps import check_parameters
    from balsam_exec.model.errors import InvalidRequest
    from balsam_exec.model.jobs import STDOUT, JobSpec

    service = connect()
    found = app_named(service, app, site and one_site(service, site))
    if found.command_template is None:
        raise InvalidRequest(f"{found.name} is a Python app: submit it from Python, with {found.name}.submit(...)")
    parameters = pairs(param, "--param")
    check_parameters(found.name, found.parameters, parameters)
    spec = JobSpec(
        app_id=found.id,
        workdir=workdir,
        parameters=parameters,
        tags=tags(tag),
        data=json_object(data, "--data"),
        parent_ids=parent or [],
        on_parent_failure=on_parent_failure,
        input_files=input_file or [],
        transfers=pairs(transfer, "--transfer"),
        num_nodes=nodes,
        ranks_per_node=ranks_per_node,
        threads_per_rank=threads_per_rank,
        threads_per_core=threads_per_core,
        gpus_per_rank=gpus_per_rank,
        node_packing_count=node_packing_count,
        wall_time_min=wall_time_min,
        launch_params=pairs(launch_param, "--launch-param"),
        stdout=stdout or STDOUT,
        stderr=stderr,
    )
    [created] = service.create_jobs([spec])
    print_one(created, str(created.id), json)
    if wait:
        raise typer.Exit(wait_for(service, [service.job(created.id)]))
