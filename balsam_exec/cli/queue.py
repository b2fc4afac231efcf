"""`balsam queue`: allocations on the sites' batch schedulers."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from balsam_exec.cli.common import (
    AtSiteOption,
    JsonOption,
    SiteOption,
    connect,
    group,
    of_site,
    pairs,
    site_names,
    tags,
)

if TYPE_CHECKING:
    from balsam_exec.client.service import Service
    from balsam_exec.model.batch_jobs import BatchJobRecord

app = group("Allocations (batch jobs): the nodes that jobs run on.")

#: The longest one request waits for news, in seconds.
_POLL_SEC = 30.0


class Mode(StrEnum):
    MPI = "mpi"
    SERIAL = "serial"


Ids = Annotated[list[int], typer.Argument(help="Ids of allocations (see `balsam queue ls`).")]
Tags = Annotated[
    list[str] | None,
    typer.Option("--tag", help="Run only jobs with this tag; several must all match.", metavar="KEY=VALUE"),
]
Parts = Annotated[
    list[str] | None,
    typer.Option(
        "--part",
        help="A launcher of its own for some of the nodes, like serial:2 or mpi:4:kind=md,size=big; repeatable.",
        metavar="MODE:NODES[:TAGS]",
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", "-o", help="An optional parameter of the site; repeatable.", metavar="NAME=VALUE"),
]
Idle = Annotated[int | None, typer.Option("--idle", min=0, help="End after so many seconds without work.")]


@app.command()
def submit(
    nodes: Annotated[
        int | None, typer.Option("--nodes", "-n", min=1, help="Nodes; by default those of its parts, or 1.")
    ] = None,
    time: Annotated[int, typer.Option("--time", "-t", min=1, help="Wall time in minutes.")] = 60,
    queue: Annotated[str, typer.Option("--queue", "-q", help="The scheduler's queue.")] = "local",
    project: Annotated[str, typer.Option("--project", "-A", help="Who is charged.")] = "local",
    mode: Annotated[Mode, typer.Option("--job-mode", "-j", help="How jobs are placed.")] = Mode.MPI,
    site: AtSiteOption = None,
    tag: Tags = None,
    part: Parts = None,
    option: Options = None,
    idle: Idle = None,
    wait: Annotated[bool, typer.Option("--wait", help="Return when it runs; with an error if it does not.")] = False,
    json: JsonOption = False,
) -> None:
    """Request an allocation; its launcher runs the site's jobs (with --tag, only those with these tags)."""
    from balsam_exec.cli.output import print_one
    from balsam_exec.cli.selection import one_site
    from balsam_exec.model.batch_jobs import BatchJobSpec

    partitions = _partitions(part)
    service = connect()
    spec = BatchJobSpec.model_validate(
        {
            "site_id": one_site(service, site),
            "num_nodes": nodes or sum(partition["num_nodes"] for partition in partitions) or 1,
            "wall_time_min": time,
            "job_mode": mode.value,
            "queue": queue,
            "project": project,
            "optional_params": pairs(option, "--option"),
            "filter_tags": tags(tag),
            "partitions": partitions,
            "idle_ttl_sec": idle,
        }
    )
    made = service.create_batch_job(spec)
    if wait:
        made = _started(service, made)
    print_one(made, str(made.id), json)


def _partitions(given: list[str] | None) -> list[dict[str, Any]]:
    """MODE:NODES[:tag=value,...] arguments as the service has them."""
    found = []
    for text in given or []:
        mode, _, rest = text.partition(":")
        nodes, _, listed = rest.partition(":")
        if mode not in list(Mode) or not nodes.isdigit() or int(nodes) == 0:
            raise typer.BadParameter(f"{text!r} is not like serial:2 or mpi:4:kind=md", param_hint="--part")
        filters = pairs(listed.split(","), "--part") if listed else {}
        found.append({"job_mode": mode, "num_nodes": int(nodes), "filter_tags": filters})
    return found


def _started(service: Service, record: BatchJobRecord) -> BatchJobRecord:
    """The record once it runs. Raises BalsamError when it ends without that."""
    from balsam_exec.cli.histories import why
    from balsam_exec.model.errors import BalsamError
    from balsam_exec.model.queries import FeedQuery
    from balsam_exec.model.states import BatchJobState

    waiting = {BatchJobState.PENDING_SUBMISSION, BatchJobState.QUEUED}
    cursor = service.feed(FeedQuery()).cursor
    while (record := service.batch_job(record.id)).state in waiting:
        news = FeedQuery(cursor=cursor, subject_id=[record.id], timeout=_POLL_SEC)
        cursor = service.feed(news).cursor
    if record.state is not BatchJobState.RUNNING and record.start_time is None:
        raise BalsamError(f"batch job {record.id} is {record.state}: {why(record) or 'no reason given'}")
    return record


@app.command("ls")
def list_batch_jobs(
    site: SiteOption = None,
    everything: Annotated[bool, typer.Option("--all", "-a", help="Also those that ended.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="The latest so many.")] = 100,
    json: JsonOption = False,
) -> None:
    """List allocations."""
    from balsam_exec.cli.histories import why
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
        "INFO": why,
    }
    print_records(found, columns, json)


@app.command("rm")
def cancel(ids: Ids, json: JsonOption = False) -> None:
    """Cancel allocations. Jobs that run in them will run again in others."""
    from balsam_exec.model.states import BatchJobState

    _patch_all(ids, {"state": BatchJobState.PENDING_DELETION}, json)


@app.command()
def modify(
    ids: Ids,
    nodes: Annotated[int | None, typer.Option("--nodes", "-n", min=1, help="Nodes.")] = None,
    time: Annotated[int | None, typer.Option("--time", "-t", min=1, help="Wall time in minutes.")] = None,
    queue: Annotated[str | None, typer.Option("--queue", "-q", help="The scheduler's queue.")] = None,
    project: Annotated[str | None, typer.Option("--project", "-A", help="Who is charged.")] = None,
    mode: Annotated[Mode | None, typer.Option("--job-mode", "-j", help="How jobs are placed.")] = None,
    tag: Tags = None,
    part: Parts = None,
    option: Options = None,
    idle: Idle = None,
    json: JsonOption = False,
) -> None:
    """Change allocations that wait. Tags, parts and optional parameters are replaced by those given.

    Those that the scheduler has already are changed there too; what it refuses, `balsam queue ls` says.
    """
    changes = {
        "num_nodes": nodes,
        "wall_time_min": time,
        "queue": queue,
        "project": project,
        "job_mode": None if mode is None else mode.value,
        "filter_tags": tags(tag) or None,
        "partitions": _partitions(part) or None,
        "optional_params": pairs(option, "--option") or None,
        "idle_ttl_sec": idle,
    }
    given = {name: value for name, value in changes.items() if value is not None}
    if not given:
        raise typer.BadParameter("nothing to change: give --nodes, --time, ...")
    _patch_all(ids, given, json)


def _patch_all(ids: list[int], changes: dict[str, Any], json: bool) -> None:
    from balsam_exec.cli.output import print_one
    from balsam_exec.model.batch_jobs import BatchJobPatch

    service = connect()
    patch = BatchJobPatch.model_validate(changes)
    changed = [service.patch_batch_job(batch_job_id, patch) for batch_job_id in ids]
    print_one(changed, str(len(changed)), json)


@app.command()
def history(
    ids: Annotated[list[int] | None, typer.Argument(help="Allocations, to see all that happened to them.")] = None,
    site: SiteOption = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="The latest so many.")] = 20,
    json: JsonOption = False,
) -> None:
    """What became of allocations, the newest first: when they were requested, queued, started and ended, the node-hours
    they used, how many jobs ran there last, and why they ended."""
    from balsam_exec.cli import histories
    from balsam_exec.model.errors import NotFound

    service = connect()
    lookups = {"id": ids} if ids else of_site(service, site)
    records = service.batch_jobs(ordering="-id", limit=max(limit, len(ids or [])), **lookups).results
    found = histories.of(service, records)
    if missing := sorted(set(ids or []) - {item.id for item in found}):
        raise NotFound(f"there is no batch job {missing[0]}")
    histories.show(service, found, json, events=bool(ids))
