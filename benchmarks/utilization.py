"""How well jobs use the nodes of their allocations: arithmetic over events and the records of a scheduler.

Utilization while work remained is the node-seconds of the runs that came to their end, over the node-seconds of the
allocations, both from the first start of a job to the last, for after that none waits. A run occupies its nodes from
RUNNING to RUN_DONE, each of them by 1/node_packing_count. So all this counts against it: the start of every launcher
but the first, the end of allocations, the runs that were cut short, nodes kept free for a job that needs several.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from balsam_exec.model.events import EventRecord
from balsam_exec.model.states import JobState

#: What ends a run.
_ENDS = {JobState.RUN_DONE, JobState.RUN_ERROR, JobState.RUN_TIMEOUT, JobState.USER_KILLED}


@dataclass(frozen=True, slots=True)
class Span:
    """Nodes, parts of nodes too, that were taken from `start` to `end`, in seconds."""

    start: float
    end: float
    nodes: float


@dataclass(frozen=True, slots=True)
class Run(Span):
    """A run of a job."""

    job_id: int
    state: JobState  #: how it ended
    reason: str  #: why it was cut short


def runs_of(events: Iterable[EventRecord], nodes: Mapping[int, float]) -> list[Run]:
    """The runs that these events of jobs tell of, in the order of their ends; `nodes` has what each job takes."""
    started: dict[int, float] = {}
    found = []
    for event in events:
        if event.to_state == JobState.RUNNING:
            started[event.subject_id] = event.timestamp.timestamp()
        elif event.from_state == JobState.RUNNING and event.to_state in _ENDS:
            job, state = event.subject_id, JobState(event.to_state)
            reason = str(event.data.get("error") or event.data.get("reason") or "")
            found.append(Run(started.pop(job), event.timestamp.timestamp(), nodes[job], job, state, reason))
    return found


def node_seconds(spans: Iterable[Span], start: float, end: float) -> float:
    """What they had between two times."""
    return sum(span.nodes * max(0.0, min(span.end, end) - max(span.start, start)) for span in spans)


def utilization(runs: Sequence[Run], allocations: Iterable[Span]) -> float:
    """While work remained, from 0 to 1."""
    first, last = min(run.start for run in runs), max(run.start for run in runs)
    done = [run for run in runs if run.state is JobState.RUN_DONE]
    return node_seconds(done, first, last) / node_seconds(allocations, first, last)
