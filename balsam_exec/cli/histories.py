"""What became of allocations, as `balsam queue history` shows it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from balsam_exec.cli.common import site_names
from balsam_exec.cli.output import print_json, print_rows, stamp
from balsam_exec.client.pages import every
from balsam_exec.client.service import Service
from balsam_exec.model.base import Timestamp, now
from balsam_exec.model.batch_jobs import BatchJobRecord
from balsam_exec.model.events import EventRecord, Kind
from balsam_exec.model.states import BatchJobState


class Story(BatchJobRecord):
    """A batch job and what became of it."""

    queued_time: Timestamp | None  #: when its scheduler had it; None: not yet, or it started at once
    node_hours: float  #: used until it ended, or until now
    jobs: int  #: whose last run was there
    history: list[EventRecord]


def of(service: Service, records: Sequence[BatchJobRecord]) -> list[Story]:
    ids = [record.id for record in records]
    events: dict[int, list[EventRecord]] = {batch_job_id: [] for batch_job_id in ids}
    for event in every(service.events, kind=[Kind.BATCH_JOB], subject_id=ids) if ids else ():
        events[event.subject_id].append(event)
    at = now()
    return [story(record, events[record.id], _jobs(service, record), at) for record in records]


def _jobs(service: Service, record: BatchJobRecord) -> int:
    return service.count_jobs(batch_job_id=[record.id]) if record.start_time else 0


def story(record: BatchJobRecord, events: Iterable[EventRecord], jobs: int, at: datetime) -> Story:
    """What its record and its events (the oldest first) tell at a moment."""
    events = list(events)
    queued = (event.timestamp for event in events if event.to_state == BatchJobState.QUEUED != event.from_state)
    hours = 0.0
    if record.start_time is not None:
        hours = max(0.0, ((record.end_time or at) - record.start_time).total_seconds() / 3600)
    return Story(
        **record.model_dump(),
        queued_time=next(queued, None),
        node_hours=round(record.num_nodes * hours, 4),
        jobs=jobs,
        history=events,
    )


def why(record: BatchJobRecord) -> str:
    """Why it waits, or how it ended; what the scheduler is yet to be told, and what it has refused."""
    said = [record.status_info.get(key) for key in ("error", "refused", "info")]
    if record.state is BatchJobState.QUEUED and record.submitted is not None:
        said += [f"to be changed: {', '.join(changes)}"] if (changes := record.submitted.changes(record)) else []
    return "; ".join(str(text) for text in said if text)


def show(service: Service, stories: Sequence[Story], json: bool, *, events: bool) -> None:
    """As a table or, with `events`, each with all that happened to it."""
    if json:
        print_json(stories)
    elif events:
        for item in stories:
            _show_events(item)
    else:
        _show_table(stories, site_names(service))


def _show_table(stories: Sequence[Story], sites: dict[int, str]) -> None:
    columns = {
        "ID": lambda item: item.id,
        "SITE": lambda item: sites.get(item.site_id),
        "STATE": lambda item: item.state,
        "NODES": lambda item: item.num_nodes,
        "QUEUE": lambda item: item.queue,
        "BY": lambda item: item.origin,
        "REQUESTED": lambda item: item.created,
        "QUEUED": lambda item: item.queued_time,
        "STARTED": lambda item: item.start_time,
        "ENDED": lambda item: item.end_time,
        "NODE-HOURS": lambda item: f"{item.node_hours:.2f}",
        "JOBS": lambda item: item.jobs,
        "WHY": why,
    }
    print_rows(list(columns), [[cell(item) for cell in columns.values()] for item in stories])


def _show_events(item: Story) -> None:
    title = f"Batch job {item.id} of {item.num_nodes} nodes for {item.wall_time_min} min, by {item.origin}"
    print(f"{title}\n{'-' * len(title)}")
    for event in item.history:
        print(f"[{stamp(event.timestamp)} {event.to_state}]{_remark(event)}")
    print(f"{item.jobs} jobs, {item.node_hours:.2f} node-hours\n")


def _remark(event: EventRecord) -> str:
    changes = [f"{name} {before} -> {after}" for name, (before, after) in event.data.get("changed", {}).items()]
    said = [str(event.data[key]) for key in ("error", "refused", "info", "reason") if event.data.get(key)]
    return f"  {'; '.join(changes + said)}".rstrip()
