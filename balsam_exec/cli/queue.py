"""`balsam queue`: allocations on the sites' batch schedulers."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from balsam_exec.cli.common import JsonOption, SiteOption, TagOption, connect, find_site, group, pairs

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
    site: SiteOption = None,
    tag: TagOption = None,
    idle: Annotated[int | None, typer.Option("--idle", min=0, help="End after so many seconds without work.")] = None,
) -> None:
    """Request an allocation; its launcher runs the site's jobs (with --tag, only those with these tags)."""
    from balsam_exec.model.batch_jobs import BatchJobSpec

    service = connect()
    spec = BatchJobSpec(
        site_id=find_site(service, site).id,
        num_nodes=nodes,
        wall_time_min=time,
        job_mode=mode.value,
        queue=queue,
        project=project,
        filter_tags=pairs(tag, "--tag"),
        idle_ttl_sec=idle,
    )
    print(service.create_batch_job(spec).id)


@app.command("ls")
def list_batch_jobs(
    site: SiteOption = None,
    everything: Annotated[bool, typer.Option("--all", "-a", help="Also those that ended.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="The latest so many.")] = 100,
    json: JsonOption = False,
) -> None:
    """List allocations."""
    from balsam_exec.cli.output import print_json, print_rows
    from balsam_exec.model.states import BATCH_JOB_ENDED

    service = connect()
    lookups: dict[str, Any] = {} if everything else {"state__ne": sorted(BATCH_JOB_ENDED)}
    if site:
        lookups["site_id"] = [find_site(service, site).id]
    found = service.batch_jobs(ordering="-id", limit=limit, **lookups).results[::-1]
    if json:
        print_json([item.model_dump(mode="json") for item in found])
        return
    names = {record.id: record.name for record in service.sites(limit=1000).results}
    columns = ("ID", "SITE", "STATE", "NODES", "MINUTES", "MODE", "QUEUE", "SCHEDULER ID", "STARTED", "ENDED", "INFO")
    rows = [
        (
            item.id,
            names.get(item.site_id),
            item.state,
            item.num_nodes,
            item.wall_time_min,
            item.job_mode,
            item.queue,
            item.scheduler_id,
            item.start_time,
            item.end_time,
            item.status_info.get("error") or item.status_info.get("info"),
        )
        for item in found
    ]
    print_rows(columns, rows)


@app.command("rm")
def cancel(ids: Annotated[list[int], typer.Argument(help="Ids of allocations (see `balsam queue ls`).")]) -> None:
    """Cancel allocations. Jobs that run in them will run again in others."""
    from balsam_exec.model.batch_jobs import BatchJobPatch
    from balsam_exec.model.states import BatchJobState

    service = connect()
    for batch_job_id in ids:
        service.patch_batch_job(batch_job_id, BatchJobPatch(state=BatchJobState.PENDING_DELETION))
