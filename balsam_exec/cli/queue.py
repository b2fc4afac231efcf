"""`balsam queue`: allocations on the sites' batch schedulers."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from balsam_exec.cli.common import (
    AtSiteOption,
    JsonOption,
    SiteOption,
    TagOption,
    connect,
    group,
    of_site,
    site_names,
    tags,
)

app = group("Allocations (batch jobs): the nodes that jobs run on.")


class Mode(StrEnum):
    MPI = "mpi"
    SERIAL = "serial"


@app.command()
def submit(
    nodes: Annotated[int, typer.Option("--nodes", "-n", min=1, help="Nodes.")] = 1,
    time: Annotated[int, typer.Option("--time", "-t", min=1, help="Wall time in minutes.")] = 60,
    queue: Annotated[str, typer.Option("--queue", "-q", help="The scheduler's queue.")] = "local",
    project: Annotated[str, typer.Option("--project", "-A", help="Who is charged.")] = "local",
    mode: Annotated[Mode, typer.Option("--job-mode", "-j", help="How jobs are placed.")] = Mode.MPI,
    site: AtSiteOption = None,
    tag: TagOption = None,
    idle: Annotated[int | None, typer.Option("--idle", min=0, help="End after so many seconds without work.")] = None,
    json: JsonOption = False,
) -> None:
    """Request an allocation; its launcher runs the site's jobs (with --tag, only those with these tags)."""
    from balsam_exec.cli.output import print_one
    from balsam_exec.client.sites import site_id
    from balsam_exec.model.batch_jobs import BatchJobSpec

    service = connect()
    spec = BatchJobSpec(
        site_id=site_id(service, site),
        num_nodes=nodes,
        wall_time_min=time,
        job_mode=mode.value,
        queue=queue,
        project=project,
        filter_tags=tags(tag),
        idle_ttl_sec=idle,
    )
    made = service.create_batch_job(spec)
    print_one(made, str(made.id), json)


@app.command("ls")
def list_batch_jobs(
    site: SiteOption = None,
    everything: Annotated[bool, typer.Option("--all", "-a", help="Also those that ended.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="The latest so many.")] = 100,
    json: JsonOption = False,
) -> None:
    """List allocations."""
    from balsam_exec.cli.output import print_records
    from balsam_exec.model.states import BATCH_JOB_ENDED

    service = connect()
    lookups: dict[str, Any] = {} if everything else {"state__ne": sorted(BATCH_JOB_ENDED)}
    lookups |= of_site(service, site)
    found = service.batch_jobs(ordering="-id", limit=limit, **lookups).results[::-1]
    names = {} if json else site_names(service)
    columns = {
        "ID": lambda item: item.id,
        "SITE": lambda item: names.get(item.site_id),
        "STATE": lambda item: item.state,
        "NODES": lambda item: item.num_nodes,
        "MINUTES": lambda item: item.wall_time_min,
        "MODE": lambda item: item.job_mode,
        "QUEUE": lambda item: item.queue,
        "SCHEDULER ID": lambda item: item.scheduler_id,
        "STARTED": lambda item: item.start_time,
        "ENDED": lambda item: item.end_time,
        "INFO": lambda item: item.status_info.get("error") or item.status_info.get("info"),
    }
    print_records(found, columns, json)


@app.command("rm")
def cancel(
    ids: Annotated[list[int], typer.Argument(help="Ids of allocations (see `balsam queue ls`).")],
    json: JsonOption = False,
) -> None:
    """Cancel allocations. Jobs that run in them will run again in others."""
    from balsam_exec.cli.output import print_one
    from balsam_exec.model.batch_jobs import BatchJobPatch
    from balsam_exec.model.states import BatchJobState

    service = connect()
    patch = BatchJobPatch(state=BatchJobState.PENDING_DELETION)
    cancelled = [service.patch_batch_job(batch_job_id, patch) for batch_job_id in ids]
    print_one(cancelled, str(len(cancelled)), json)
