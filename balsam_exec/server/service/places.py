"""Whether a job may run on an allocation, and why not: pure, over what the service knows of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from balsam_exec.model.explain import Cause, Reason
from balsam_exec.server.service.words import listed, number, pairs

#: So many allocations are named in a sentence.
SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a job needs of an allocation."""

    nodes: int
    ranks_per_node: int
    gpus_per_node: float
    minutes: int  #: 0: unknown
    tags: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """An allocation that has a launcher, or is to have one."""

    name: str
    nodes: int | None = None  #: None, here and below: not known, so it is no obstacle
    gpus_per_node: float | None = None
    minutes: int | None = None  #: that are left
    serial_only: bool = False
    filter_tags: Mapping[str, str] = field(default_factory=dict)
    held: int = 0  #: jobs that its launcher holds


def obstacles(job: Demand, place: Place) -> set[Cause]:
    """Why the job cannot run there, whatever else does; empty where it can."""
    wrong = {
        Cause.TOO_FEW_NODES: place.nodes is not None and job.nodes > place.nodes,
        Cause.TOO_FEW_GPUS: place.gpus_per_node is not None and job.gpus_per_node > place.gpus_per_node,
        Cause.SERIAL_ONLY: place.serial_only and (job.nodes > 1 or job.ranks_per_node > 1),
        Cause.TAGS_EXCLUDE_IT: any(job.tags.get(key) != value for key, value in place.filter_tags.items()),
        Cause.TIME_TOO_SHORT: place.minutes is not None and job.minutes > place.minutes,
    }
    return {cause for cause, holds in wrong.items() if holds}


def fits(job: Demand, place: Place) -> bool:
    return not obstacles(job, place)


def why_nowhere(job: Demand, places: Sequence[Place]) -> list[Reason]:
    """Why none of these fits: what stands in the way at the most of them first."""
    in_the_way: dict[Cause, list[Place]] = {cause: [] for cause in _SAID}
    for place in places:
        for cause in obstacles(job, place):
            in_the_way[cause].append(place)
    found = [(cause, there) for cause, there in in_the_way.items() if there]
    found.sort(key=lambda item: -len(item[1]))
    return [_reason(cause, job, there, places) for cause, there in found]


def _reason(cause: Cause, job: Demand, there: Sequence[Place], places: Sequence[Place]) -> Reason:
    text, detail = _SAID[cause](job, there, _who(there, places))
    return Reason(code=cause, text=text, detail={**detail, "allocations": len(there), "of": len(places)})


def _who(there: Sequence[Place], places: Sequence[Place]) -> str:
    total = len(places)
    if total == 1:
        return f"the running allocation ({there[0].name})"
    several = len({place.name for place in places}) < total  # launchers, in parts of one allocation
    noun = "launchers" if several else "running allocations"
    if len(there) == total:
        return f"the {total} {noun}"
    names = list(dict.fromkeys(place.name for place in there))
    text = listed(names[:SHOWN], len(names))
    return f"{len(there)} of {total} {noun} ({text})" if several else f"{text} (of {total} {noun})"


Said = tuple[str, dict[str, Any]]


def _nodes(job: Demand, there: Sequence[Place], who: str) -> Said:
    most = max(place.nodes or 0 for place in there)
    return f"it needs {number(job.nodes, 'node')}, and {_have(there, who)} {most}", {"needs": job.nodes, "most": most}


def _gpus(job: Demand, there: Sequence[Place], who: str) -> Said:
    most = max(place.gpus_per_node or 0 for place in there)
    text = f"it needs {job.gpus_per_node:g} GPUs on a node, and {_have(there, who)} {most:g}"
    return text, {"needs": job.gpus_per_node, "most": most}


def _serial(job: Demand, there: Sequence[Place], who: str) -> Said:
    ranks = job.nodes * job.ranks_per_node
    mode = "in serial mode, which is for jobs of one rank"
    return f"it has {number(ranks, 'rank')}, and {who} run{'s' * (len(there) == 1)} {mode}", {"ranks": ranks}


def _tags(job: Demand, there: Sequence[Place], who: str) -> Said:
    wanted = sorted({pairs(place.filter_tags.items()) for place in there})
    take = f"{who} take{'s' * (len(there) == 1)} only jobs with the tags {' or '.join(wanted[:SHOWN])}"
    return f"{take}, and it has {pairs(job.tags.items()) or 'none'}", {"filter_tags": wanted, "tags": dict(job.tags)}


def _time(job: Demand, there: Sequence[Place], who: str) -> Said:
    most = max(place.minutes or 0 for place in there)
    text = f"it needs {job.minutes} min, and {_have(there, who)} {most} min left"
    return text, {"needs": job.minutes, "most": most}


def _have(there: Sequence[Place], who: str) -> str:
    return f"{who} has" if len(there) == 1 else f"{who} have at most"


#: In the order in which they are told where equally many allocations are concerned.
_SAID: dict[Cause, Callable[[Demand, Sequence[Place], str], Said]] = {
    Cause.TOO_FEW_NODES: _nodes,
    Cause.TOO_FEW_GPUS: _gpus,
    Cause.SERIAL_ONLY: _serial,
    Cause.TAGS_EXCLUDE_IT: _tags,
    Cause.TIME_TOO_SHORT: _time,
}
