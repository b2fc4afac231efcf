"""From what the service tells of a site to the facts that `sizing` reckons with. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from fractions import Fraction

from balsam_exec.model.backlog import HeldGroup, JobGroup
from balsam_exec.model.base import Tags
from balsam_exec.model.batch_jobs import BatchJobRecord, JobMode, Origin
from balsam_exec.model.states import BatchJobState
from balsam_exec.site.sizing import Allocation, Phase, Work


@dataclass(frozen=True, slots=True)
class Terms:
    """Which jobs the allocations are for, and what these have to offer them."""

    job_mode: JobMode
    filter_tags: Tags
    cores: int | None  #: of a node; None: unknown, so that node_packing_count alone says how many jobs share one
    gpus: int | None
    bound: bool  #: whether jobs of one core have it for themselves
    unknown_min: int  #: what a job takes that does not say

    def admit(self, group: JobGroup) -> bool:
        """Whether a launcher of such an allocation takes these jobs at all."""
        if self.job_mode == "serial" and group.ranks > 1:
            return False
        return self.gpus is None or group.gpus_per_node <= self.gpus

    def per_node(self, group: JobGroup) -> int:
        """How many of these jobs share a node."""
        limits = [group.node_packing_count]
        if self.cores is not None and (group.cores_per_node > 1 or self.bound):
            limits.append(self.cores // group.cores_per_node)
        if self.gpus is not None and group.gpus_per_node:
            limits.append(int(self.gpus // group.gpus_per_node))
        return max(1, min(limits)) if group.num_nodes == 1 else 1

    def work(self, group: JobGroup) -> Work:
        minutes = group.wall_time_min or self.unknown_min
        return Work(group.num_nodes, minutes, group.count, self.per_node(group))


def work_of(groups: Iterable[JobGroup], terms: Terms) -> list[Work]:
    """The jobs that such allocations are for. What differs only in what does not matter here is counted together."""
    found: Counter[Work] = Counter()
    for group in groups:
        if terms.admit(group):
            work = terms.work(group)
            found[replace(work, count=0)] += work.count
    return [replace(work, count=count) for work, count in found.items()]


def allocations_of(
    living: Iterable[BatchJobRecord], held: Iterable[HeldGroup], origin: Origin, terms: Terms, now: datetime
) -> list[Allocation]:
    """The batch jobs that `origin` has requested, and those of others that do the same work."""
    load: dict[int, Fraction] = defaultdict(Fraction)
    for group in held:
        load[group.batch_job_id] += _node_minutes(group, terms)
    return [
        _allocation(record, load.get(record.id), record.origin == origin, now)
        for record in living
        if record.origin == origin or _does_the_same(record, terms)
    ]


def _node_minutes(group: HeldGroup, terms: Terms) -> Fraction:
    """What jobs that an allocation has will take yet."""
    work = terms.work(group)
    left = max(Fraction(0), work.count * work.minutes - Fraction(int(group.elapsed_sec), 60))
    return left * work.num_nodes / work.per_node


def _does_the_same(record: BatchJobRecord, terms: Terms) -> bool:
    """Whether it takes all jobs that are reckoned with."""
    all_of_them = record.filter_tags.items() <= terms.filter_tags.items()
    return all_of_them and not record.partitions and record.job_mode in ("mpi", terms.job_mode)


def _allocation(record: BatchJobRecord, held: Fraction | None, own: bool, now: datetime) -> Allocation:
    started = record.start_time or now
    # A launcher that has jobs runs, whatever is recorded of its allocation as yet.
    if record.state is BatchJobState.PENDING_DELETION:
        phase = Phase.ENDING
    elif record.state is BatchJobState.RUNNING or held is not None:
        phase = Phase.RUNNING
    else:
        phase = Phase.WAITING
    elapsed = int((now - started).total_seconds() // 60) if phase is Phase.RUNNING else 0
    return Allocation(
        record.id,
        record.num_nodes,
        max(0, record.wall_time_min - max(0, elapsed)),
        phase,
        own,
        (now - record.created).total_seconds() / 60,
        held or Fraction(0),
    )
