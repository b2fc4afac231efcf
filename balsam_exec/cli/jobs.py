"""`balsam job`: look at jobs, make simple ones, kill and remove them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from balsam_exec.cli.common import (
    JsonOption,
    SiteOption,
    TagOption,
    YesOption,
    confirm,
    connect,
    find_app,
    find_site,
    group,
    pairs,
)
from balsam_exec.cli.logs import logs
from balsam_exec.model.states import JobState

if TYPE_CHECKING:
    from balsam_exec.client.service import Service
    from balsam_exec.model.events import EventRecord
    from balsam_exec.model.jobs import JobRecord

app = group("Jobs: look at them, make simple ones, kill and remove them.")

StateOption = Annotated[
    list[JobState] | None,
    typer.Option("--state", case_sensitive=False, metavar="STATE", help="In any of these."),
]
AppOption = Annotated[str | None, typer.Option("--app", help="Of this app.")]
app.command()(logs)
#: The most ids in one URL.
_IDS = 200


@app.command("ls")
def list_jobs(
    ids: Annotated[list[int] | None, typer.Argument(help="Only these jobs.")] = None,
    state: StateOption = None,
    tag: TagOption = None,
    site: SiteOption = None,
    app_name: AppOption = None,
    workdir: Annotated[str | None, typer.Option(help="Whose workdir contains this.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="The latest so many.")] = 100,
    history: Annotated[bool, typer.Option("--history", help="With every change of state.")] = False,
    by_state: Annotated[bool, typer.Option("--by-state", "--by-states", help="Only how many in each state.")] = False,
    json: JsonOption = False,
) -> None:
    """List jobs, or count them by state, or tell their histories."""
    service = connect()
    filters = _filters(service, ids, state, tag, site, app_name, workdir)
    if by_state:
        _print_counts(service, filters, json)
        return
    jobs = _latest(service, filters, limit)
    if history:
        _print_histories(service, jobs, json)
    else:
        _print_jobs(service, jobs, json)
    if len(jobs) == limit:
        total = service.count_jobs(**filters)
        if total > limit:
            typer.secho(f"the latest {limit} of {total} jobs; --limit shows more", err=True, dim=True)


@app.command()
def create(
    app_name: Annotated[str, typer.Option("--app", help="The app to run; a command.")],
    workdir: Annotated[str, typer.Option("--workdir", "-w", help="Its directory, below the site's data/.")],
    param: Annotated[list[str] | None, typer.Option("--param", "-p", help="A parameter.", metavar="KEY=VALUE")] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="A tag.", metavar="KEY=VALUE")] = None,
    site: SiteOption = None,
    parent: Annotated[list[int] | None, typer.Option(help="A job that has to finish first.")] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes.")] = 1,
    ranks_per_node: Annotated[int, typer.Option(min=1, help="Processes on each node.")] = 1,
    threads_per_rank: Annotated[int, typer.Option(min=1, help="Threads of each process.")] = 1,
    gpus_per_rank: Annotated[float, typer.Option(min=0, help="GPUs of each process.")] = 0,
    node_packing_count: Annotated[int, typer.Option(min=1, help="How many such jobs may share a node.")] = 1,
    wall_time_min: Annotated[int, typer.Option(min=0, help="Minutes it takes; 0: unknown.")] = 0,
    stdout: Annotated[str, typer.Option(help="The file of its workdir for what it prints; job.out.")] = "",
    stderr: Annotated[str, typer.Option(help="A file for its stderr alone.")] = "",
) -> None:
    """Make a job of a command app, and print its id."""
    from balsam_exec.model.apps import check_parameters
    from balsam_exec.model.errors import InvalidRequest
    from balsam_exec.model.jobs import STDOUT, JobSpec

    service = connect()
    found = find_app(service, app_name, site)
    if found.command_template is None:
        raise InvalidRequest(f"{found.name} is a Python app: submit it from Python, with {found.name}.submit(...)")
    parameters = pairs(param, "--param")
    check_parameters(found.name, found.parameters, parameters)
    spec = JobSpec(
        app_id=found.id,
        workdir=workdir,
        parameters=parameters,
        tags=pairs(tag, "--tag"),
        parent_ids=parent or [],
        num_nodes=nodes,
        ranks_per_node=ranks_per_node,
        threads_per_rank=threads_per_rank,
        gpus_per_rank=gpus_per_rank,
        node_packing_count=node_packing_count,
        wall_time_min=wall_time_min,
        stdout=stdout or STDOUT,
        stderr=stderr,
    )
    print(service.create_jobs([spec])[0].id)


@app.command("rm")
def remove(
    ids: Annotated[list[int] | None, typer.Argument(help="Ids of jobs.")] = None,
    state: StateOption = None,
    tag: TagOption = None,
    site: SiteOption = None,
    app_name: AppOption = None,
    yes: YesOption = False,
) -> None:
    """Remove jobs for good: those named, or all that the options choose."""
    from balsam_exec.model.queries import JobQuery

    service = connect()
    filters = _chosen(service, "Remove", yes, ids, state, tag, site, app_name)
    print(service.delete_jobs(JobQuery(**filters)))


@app.command()
def kill(
    ids: Annotated[list[int] | None, typer.Argument(help="Ids of jobs.")] = None,
    state: StateOption = None,
    tag: TagOption = None,
    site: SiteOption = None,
    app_name: AppOption = None,
    yes: YesOption = False,
) -> None:
    """Kill jobs that have not ended: those named, or all that the options choose.

    What waits never runs. What runs is told to end, and is USER_KILLED when nothing is left of it.
    """
    from balsam_exec.model.errors import NotFound
    from balsam_exec.model.queries import JobQuery

    service = connect()
    filters = _chosen(service, "Kill", yes, ids, state, tag, site, app_name)
    if filters.keys() == {"id"}:
        found = service.kill_jobs(filters["id"])
        if absent := sorted(set(filters["id"]).difference(found.killed, found.ordered, found.over)):
            raise NotFound(f"there is no job {', '.join(map(str, absent))}")
    else:
        found = service.kill_matching(JobQuery(**filters))
    print(f"{len(found.killed)} killed, {len(found.ordered)} being killed, {len(found.over)} had ended otherwise")


def _filters(
    service: Service,
    ids: list[int] | None,
    state: list[JobState] | None,
    tag: list[str] | None,
    site: str | None,
    app_name: str | None,
    workdir: str | None = None,
) -> dict[str, Any]:
    wanted = {
        "id": ids,
        "state": state,
        "tags": [f"{key}:{value}" for key, value in pairs(tag, "--tag").items()],
        "site_id": [find_site(service, site).id] if site else None,
        "app_name": [app_name] if app_name else None,
        "workdir__contains": workdir,
    }
    return {field: value for field, value in wanted.items() if value}


def _chosen(service: Service, verb: str, yes: bool, ids: list[int] | None, *options: Any) -> dict[str, Any]:
    """The filters for the jobs that are named or chosen by `_filters`'s options; to do something to all that are chosen
    has to be confirmed."""
    filters = _filters(service, ids, *options)
    if not filters:
        raise typer.BadParameter("say which jobs: ids, or options that choose them")
    if not ids:
        confirm(f"{verb} {service.count_jobs(**filters)} jobs?", yes)
    return filters


def _latest(service: Service, filters: dict[str, Any], limit: int) -> list[JobRecord]:
    """The `limit` jobs that were made last, in the order they were."""
    found: list[JobRecord] = []
    after: int | None = None
    while len(found) < limit:
        page = service.jobs(ordering="-id", limit=min(1000, limit - len(found)), after=after, **filters)
        found += page.results
        after = page.next
        if after is None:
            break
    return found[::-1]


def _app_names(service: Service, jobs: Iterable[JobRecord]) -> dict[int, str]:
    ids = sorted({job.app_id for job in jobs})
    pages = (service.apps(id=ids[i : i + _IDS], limit=1000).results for i in range(0, len(ids), _IDS))
    return {item.id: item.name for page in pages for item in page}


def _events(service: Service, jobs: list[JobRecord]) -> dict[int, list[EventRecord]]:
    found: dict[int, list[EventRecord]] = {job.id: [] for job in jobs}
    ids = list(found)
    for start in range(0, len(ids), _IDS):
        for event in _pages(service, ids[start : start + _IDS]):
            found[event.subject_id].append(event)
    return found


def _pages(service: Service, job_ids: list[int]) -> Iterator[EventRecord]:
    after: int | None = None
    while True:
        page = service.events(job_id=job_ids, ordering="id", limit=1000, after=after)
        yield from page.results
        after = page.next
        if after is None:
            return


def _as_json(job: JobRecord) -> dict[str, Any]:
    return job.model_dump(mode="json", exclude={"arguments"})


def _print_jobs(service: Service, jobs: list[JobRecord], json: bool) -> None:
    from balsam_exec.cli.output import print_json, print_rows

    if json:
        print_json([_as_json(job) for job in jobs])
        return
    names = _app_names(service, jobs)
    columns = ("ID", "APP", "WORKDIR", "STATE", "TAGS", "EXIT", "CREATED", "LAST CHANGE")
    rows = [
        (j.id, names.get(j.app_id), j.workdir, j.state, j.tags, j.return_code, j.created, j.last_update) for j in jobs
    ]
    print_rows(columns, rows)


def _print_counts(service: Service, filters: dict[str, Any], json: bool) -> None:
    from balsam_exec.cli.output import print_json, print_rows

    found = {item.state: item.count for item in service.job_states(**filters)}
    counts = {state: found[state] for state in JobState if found.get(state)}
    if json:
        print_json({state.value: count for state, count in counts.items()})
    else:
        print_rows(("STATE", "JOBS"), list(counts.items()))


def _print_histories(service: Service, jobs: list[JobRecord], json: bool) -> None:
    """As `balsam ls --history` of seed 002 shows them."""
    from balsam_exec.cli.output import print_json, stamp

    events = _events(service, jobs)
    if json:
        print_json([{**_as_json(j), "history": [e.model_dump(mode="json") for e in events[j.id]]} for j in jobs])
        return
    names = _app_names(service, jobs)
    for job in jobs:
        title = f"Job {job.id} {names.get(job.app_id, '')} {job.workdir}"
        print(f"{title}\n{'-' * len(title)}")
        if events[job.id]:
            print(f"[{stamp(job.created)} {events[job.id][0].from_state}]")
        for event in events[job.id]:
            print(f"[{stamp(event.timestamp)} {event.to_state}]{_remark(event)}")
        print()


def _remark(event: EventRecord) -> str:
    """What an event has to say beyond its state: reasons on the line, longer texts below it."""
    texts = [str(value) for key, value in event.data.items() if key in ("error", "reason", "message")]
    if event.data.get("return_code"):
        texts.insert(0, f"exit code {event.data['return_code']}")
    first, *rest = "; ".join(texts).rstrip().splitlines() or [""]
    return "\n".join([f"  {first}".rstrip(), *(f"    {line}" for line in rest)])
