"""`balsam job`: look at jobs, make simple ones, change, kill and remove them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from balsam_exec.cli import changes, create, wait
from balsam_exec.cli.choice import IDS, Choice, choosing, in_parts, latest, named
from balsam_exec.cli.common import JsonOption, YesOption, connect, group, site_names
from balsam_exec.cli.logs import logs
from balsam_exec.model.states import JobState

if TYPE_CHECKING:
    from balsam_exec.client.service import Service
    from balsam_exec.model.events import EventRecord
    from balsam_exec.model.jobs import JobRecord

app = group("Jobs: look at them, make simple ones, change, kill and remove them.")

JobId = Annotated[int, typer.Argument(help="Id of a job.", metavar="ID")]


@app.command("ls")
@choosing
def list_jobs(
    chosen: Choice,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="The latest so many.")] = 100,
    history: Annotated[bool, typer.Option("--history", help="With every change of state.")] = False,
    by_state: Annotated[bool, typer.Option("--by-state", "--by-states", help="Only how many in each state.")] = False,
    json: JsonOption = False,
) -> None:
    """List jobs, or count them by state, or tell their histories."""
    service = connect()
    filters = chosen.filters(service)
    if by_state:
        _print_counts(service, filters, json)
        return
    jobs = latest(service, filters, limit)
    if history:
        _print_histories(service, jobs, json)
    else:
        _print_jobs(service, jobs, json)
    if len(jobs) == limit:
        total = service.count_jobs(**filters)
        if total > limit:
            typer.secho(f"the latest {limit} of {total} jobs; --limit shows more", err=True, dim=True)


@app.command()
def show(job_id: JobId, json: JsonOption = False) -> None:
    """Show all fields of a job."""
    from balsam_exec.cli.output import print_fields

    service = connect()
    job = service.job(job_id)
    if json:
        print_fields(job, json)
    else:
        names = site_names(service)
        print_fields(job, json, app=service.app(job.app_id).name, site=names.get(job.site_id))


app.command("create")(create.create)


@app.command("rm")
@choosing
def remove(chosen: Choice, yes: YesOption = False, json: JsonOption = False) -> None:
    """Remove jobs for good: those named, or all that the options choose."""
    from balsam_exec.cli.output import print_one
    from balsam_exec.model.base import Count
    from balsam_exec.model.queries import JobQuery

    service = connect()
    filters = chosen.confirmed(service, "Remove", yes)
    count = service.delete_jobs(JobQuery(**filters))
    print_one(Count(count=count), str(count), json)


@app.command()
@choosing
def kill(chosen: Choice, yes: YesOption = False, json: JsonOption = False) -> None:
    """Kill jobs that have not ended: those named, or all that the options choose.

    What waits never runs. What runs is told to end, and is USER_KILLED when nothing is left of it.
    """
    from balsam_exec.cli.output import print_one
    from balsam_exec.model.errors import NotFound
    from balsam_exec.model.queries import JobQuery

    service = connect()
    filters = chosen.confirmed(service, "Kill", yes)
    if ids := chosen.only_ids:
        found = service.kill_jobs(ids)
        if absent := sorted(set(ids).difference(found.killed, found.ordered, found.over)):
            raise NotFound(f"there is no job {', '.join(map(str, absent))}")
    else:
        found = service.kill_matching(JobQuery(**filters))
    text = f"{len(found.killed)} killed, {len(found.ordered)} being killed, {len(found.over)} had ended otherwise"
    print_one(found, text, json)


app.command("modify")(choosing(changes.modify))
app.command("retry")(choosing(changes.retry))
app.command("logs")(logs)


@app.command("history")
def tell_history(
    ids: Annotated[list[int], typer.Argument(help="Ids of jobs.", metavar="ID")], json: JsonOption = False
) -> None:
    """Tell every change of state of jobs, with its time, and why where that was said."""
    service = connect()
    _print_histories(service, named(service, ids), json)


app.command("wait")(choosing(wait.wait))


@app.command()
def explain(job_id: JobId, json: JsonOption = False) -> None:
    """Say why a job is in its state: what it waits for, where it runs, how it ended."""
    from balsam_exec.cli.output import print_one

    found = connect().explain_job(job_id)
    print_one(found, found.summary, json)


def _app_names(service: Service, jobs: Iterable[JobRecord]) -> dict[int, str]:
    ids = sorted({job.app_id for job in jobs})
    return {app.id: app.name for some in in_parts(ids) for app in service.apps(id=some, limit=IDS).results}


def _events(service: Service, jobs: list[JobRecord]) -> dict[int, list[EventRecord]]:
    from balsam_exec.client.pages import every

    found: dict[int, list[EventRecord]] = {job.id: [] for job in jobs}
    for some in in_parts(list(found)):
        for event in every(service.events, job_id=some):
            found[event.subject_id].append(event)
    return found


def _print_jobs(service: Service, jobs: list[JobRecord], json: bool) -> None:
    from balsam_exec.cli.output import print_records

    names = {} if json else _app_names(service, jobs)
    columns = {
        "ID": lambda job: job.id,
        "APP": lambda job: names.get(job.app_id),
        "WORKDIR": lambda job: job.workdir,
        "STATE": lambda job: job.state,
        "TAGS": lambda job: job.tags,
        "EXIT": lambda job: job.return_code,
        "CREATED": lambda job: job.created,
        "LAST CHANGE": lambda job: job.last_update,
    }
    print_records(jobs, columns, json)


def _print_counts(service: Service, filters: dict[str, Any], json: bool) -> None:
    from balsam_exec.cli.output import print_json, print_rows

    found = {item.state: item.count for item in service.job_states(**filters)}
    counts = {state: found[state] for state in JobState if found.get(state)}
    if json:
        print_json(counts)
    else:
        print_rows(("STATE", "JOBS"), list(counts.items()))


def _print_histories(service: Service, jobs: list[JobRecord], json: bool) -> None:
    """As `balsam ls --history` of seed 002 shows them."""
    from balsam_exec.cli.output import jsonable, print_json, stamp

    events = _events(service, jobs)
    if json:
        print_json([{**jsonable(job), "history": events[job.id]} for job in jobs])
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
    data = event.data
    texts = [str(data[key]) for key in ("hook", "error", "reason", "message") if data.get(key)]
    if (code := data.get("return_code")) and not any(f"exit code {code}" in text for text in texts):
        texts.insert(0, f"exit code {code}")
    if retry := data.get("retry"):
        texts.insert(0, f"retry {retry}")
    first, *rest = "; ".join(texts).rstrip().splitlines() or [""]
    return "\n".join([f"  {first}".rstrip(), *(f"    {line}" for line in rest)])
