"""How many nodes to ask for, and for how long. Pure arithmetic: from what is to be done and what there is, to what
to request and what to take back.

Work is counted in nodes: so many would have it done within its *horizon*, which is the shortest useful allocation or,
for jobs that take longer, the time of one of them (in steps of two, so that jobs of about the same length share an
allocation). What the allocations that exist will do of it is taken off; for the rest new ones are shaped, wide before
long, as far as the limits go. Where these do not let everything be done within its horizon, allocations get longer.

The same facts always give the same plan, and once it is carried out they call for nothing more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from fractions import Fraction
from itertools import groupby
from math import ceil


@dataclass(frozen=True, slots=True)
class Work:
    """Jobs that are alike. `minutes` is what each takes at most, at least 1."""

    num_nodes: int
    minutes: int
    count: int
    per_node: int = 1  #: so many share a node; 1 where a job has several nodes


class Phase(Enum):
    WAITING = "waiting"  #: to be submitted, or in the scheduler's queue
    RUNNING = "running"
    ENDING = "ending"  #: to be deleted: it does no more work, but is not gone


@dataclass(frozen=True, slots=True)
class Allocation:
    """One that has not ended."""

    id: int
    num_nodes: int
    minutes: int  #: that it has left; all of its wall time while it waits
    phase: Phase
    own: bool = True  #: made by whoever asks for the plan: its limits are about these, and only these it takes back
    waited_min: float = 0  #: since it was requested
    held: Fraction = Fraction(0)  #: node-minutes that the jobs it has already will take


@dataclass(frozen=True, slots=True)
class Window:
    """Nodes that stay idle for so long unless something small takes them (backfill)."""

    num_nodes: int
    minutes: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What the plan may ask for; see `platform.settings.ElasticQueueSettings`."""

    min_num_nodes: int
    max_num_nodes: int
    min_wall_time_min: int
    max_wall_time_min: int
    wall_time_pad_min: int
    max_queued_jobs: int
    max_total_nodes: int | None = None
    max_queue_wait_time_min: int | None = None

    @property
    def shortest(self) -> int:
        """Minutes for jobs in the shortest allocation."""
        return self.min_wall_time_min - self.wall_time_pad_min

    @property
    def longest(self) -> int:
        """Minutes for jobs in the longest allocation."""
        return self.max_wall_time_min - self.wall_time_pad_min

    @property
    def widest(self) -> int:
        """Nodes that a job can have."""
        total = self.max_num_nodes if self.max_total_nodes is None else self.max_total_nodes
        return min(self.max_num_nodes, total)

    def horizon(self, minutes: int) -> int:
        """The time in which jobs of so many minutes are to be done."""
        found = self.shortest
        while found < minutes:
            found *= 2
        return min(found, self.longest)


@dataclass(frozen=True, slots=True)
class Shape:
    """An allocation to request."""

    num_nodes: int
    wall_time_min: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do."""

    create: tuple[Shape, ...] = ()
    delete: tuple[int, ...] = ()  #: ids of waiting allocations
    beyond_limits: int = 0  #: jobs that no allocation within the limits could run


def plan(
    work: Iterable[Work], allocations: Iterable[Allocation], limits: Limits, windows: Iterable[Window] = ()
) -> Plan:
    """What to request and what to take back, so that the work gets done.

    `windows` are filled first. They may overlap: what goes into one is taken off all.
    """
    work, windows = list(work), list(windows)
    rest = _Rest((w for w in work if _fits(w, limits.widest, limits.longest)), limits)
    beyond = sum(w.count for w in work) - rest.jobs
    living = sorted(allocations, key=lambda a: a.id)
    delete = _superfluous(living, rest, _Gaps(windows, limits), limits)
    free = _Free.after(living, limits)
    gaps = _Gaps(windows, limits)
    queue = []
    for allocation in living:
        if allocation.phase is Phase.RUNNING:
            rest.take_by_running(allocation)
    for allocation in living:
        if allocation.phase is Phase.WAITING and allocation.id not in delete:
            if allocation.own and gaps.admits(allocation):
                gaps.fill(allocation.num_nodes)
                rest.take_by_waiting(allocation)
            else:
                queue.append(allocation)
    create = list(_for_gaps(rest, gaps, free))
    for allocation in queue:
        rest.take_by_waiting(allocation)
    create += _for_the_queue(rest, free)
    return Plan(tuple(create), tuple(sorted(delete)), beyond)


def shortfall(wanted: int, shape: Shape, allocations: Iterable[Allocation]) -> Plan:
    """What is missing where a fixed number of allocations is to wait or run, whatever the work."""
    have = sum(a.own for a in allocations)
    return Plan(create=(shape,) * max(0, wanted - have))


def _fits(work: Work, nodes: int, minutes: int) -> bool:
    return work.num_nodes <= nodes and work.minutes <= minutes and work.count > 0


def _superfluous(living: Sequence[Allocation], rest: _Rest, gaps: _Gaps, limits: Limits) -> set[int]:
    """Of our own that wait those that have waited too long, and those that the others which wait leave nothing to do.

    What runs is not asked: its time goes by, and an allocation that has waited is worth more than a new one. For that
    reason those that fill windows and those that wait for more leave each other's work alone: a window may close.
    """
    found = set()
    patience = limits.max_queue_wait_time_min
    in_gaps, queued = _Rest(rest, limits), _Rest(rest, limits)
    for allocation in living:
        if allocation.own and allocation.phase is Phase.WAITING:
            too_late = patience is not None and allocation.waited_min >= patience
            fits = gaps.admits(allocation)
            if too_late or not (in_gaps if fits else queued).take_by_waiting(allocation):
                found.add(allocation.id)
            elif fits:
                gaps.fill(allocation.num_nodes)
    return found


@dataclass(slots=True)
class _Free:
    """What the limits leave."""

    slots: int
    nodes: int | None  #: None: any number
    limits: Limits

    @classmethod
    def after(cls, living: Iterable[Allocation], limits: Limits) -> _Free:
        own = [a for a in living if a.own]
        total = limits.max_total_nodes
        nodes = None if total is None else total - sum(a.num_nodes for a in own)
        return cls(limits.max_queued_jobs - len(own), nodes, limits)

    @property
    def widest(self) -> int:
        """The largest allocation that may be made now; 0 for none."""
        widest = self.limits.max_num_nodes if self.nodes is None else min(self.nodes, self.limits.max_num_nodes)
        return widest if self.slots > 0 and widest >= self.limits.min_num_nodes else 0

    @property
    def total(self) -> int:
        """Nodes in all allocations that may be made now."""
        widest = max(0, self.slots) * self.limits.max_num_nodes
        return widest if self.nodes is None else max(0, min(self.nodes, widest))

    def take(self, shape: Shape) -> None:
        self.slots -= 1
        if self.nodes is not None:
            self.nodes -= shape.num_nodes


class _Gaps:
    """The backfill windows that are left, the largest first. An allocation ends a pad before its window does."""

    def __init__(self, windows: Iterable[Window], limits: Limits) -> None:
        self._limits = limits
        self._windows = sorted(windows, key=lambda w: (w.num_nodes * w.minutes, w.num_nodes), reverse=True)
        self._taken = 0  #: nodes

    def __iter__(self) -> Iterator[Window]:
        return iter(self._windows)

    def room(self, window: Window) -> tuple[int, int]:
        """The nodes of it that are left, and the minutes for jobs; zeros where these are too few."""
        minutes = min(window.minutes - 2 * self._limits.wall_time_pad_min, self._limits.longest)
        return (max(0, window.num_nodes - self._taken), minutes) if minutes >= self._limits.shortest else (0, 0)

    def admits(self, waiting: Allocation) -> bool:
        """Whether it fits into a window."""
        last = waiting.minutes + self._limits.wall_time_pad_min
        return any(w.num_nodes - self._taken >= waiting.num_nodes and w.minutes >= last for w in self._windows)

    def fill(self, num_nodes: int) -> None:
        self._taken += num_nodes


class _Rest:
    """The work that nobody does yet, the longest first and of that the widest."""

    def __init__(self, work: Iterable[Work], limits: Limits) -> None:
        self._limits = limits
        self._work = sorted(work, key=self._rank, reverse=True)
        self._left = [w.count for w in self._work]

    def _rank(self, work: Work) -> tuple[int, ...]:
        return self._limits.horizon(work.minutes), work.num_nodes, work.minutes, work.per_node

    def __iter__(self) -> Iterator[Work]:
        return (replace(w, count=left) for w, left in self._pairs())

    def _pairs(self) -> Iterator[tuple[Work, int]]:
        return ((w, left) for w, left in zip(self._work, self._left, strict=True) if left)

    @property
    def jobs(self) -> int:
        return sum(self._left)

    @property
    def num_nodes(self) -> int:
        """Of the widest job."""
        return max((w.num_nodes for w, _ in self._pairs()), default=0)

    @property
    def horizon(self) -> int:
        """Of the longest job."""
        longest, _ = next(self._pairs(), (None, 0))
        return 0 if longest is None else self._limits.horizon(longest.minutes)

    def within(self, nodes: int, minutes: int) -> _Rest:
        """A copy, of what fits."""
        return _Rest((w for w in self if _fits(w, nodes, minutes)), self._limits)

    def levels(self) -> Iterator[_Rest]:
        """Copies, of what shares a horizon; the longest first."""
        for _, some in groupby(self, key=lambda w: self._limits.horizon(w.minutes)):
            yield _Rest(some, self._limits)

    def load(self, minutes: int) -> Fraction:
        """Nodes that would do all of it in so many minutes."""
        return sum((_nodes(w, left, minutes // w.minutes) for w, left in self._pairs()), Fraction(0))

    def time_needed(self, nodes: int, longest: int) -> int:
        """Minutes in which so many nodes do all of it, as far as `longest` is enough."""
        step = minutes = max(1, self.horizon)
        while minutes < longest and self.load(minutes) > nodes:
            minutes += step
        return min(minutes, longest)

    def take(self, nodes: int, minutes: int) -> tuple[int, int]:
        """Have an allocation do what it can. The nodes and the minutes that it needs for that; zeros for nothing."""
        used, longest = Fraction(0), 0
        for index, work in enumerate(self._work):
            rounds, free = minutes // work.minutes, nodes - used
            if not free:
                break
            if not rounds or not self._left[index]:
                continue
            at_once = int(free * work.per_node) if work.num_nodes == 1 else int(free) // work.num_nodes
            if jobs := min(self._left[index], at_once * rounds):
                self._left[index] -= jobs
                used += _nodes(work, jobs, rounds)
                longest = max(longest, rounds * work.minutes)
        return ceil(used), longest

    def take_by_waiting(self, allocation: Allocation) -> bool:
        """Have an allocation that waits do what it can; whether that is anything."""
        nodes, _ = self.take(allocation.num_nodes, max(0, allocation.minutes - self._limits.wall_time_pad_min))
        return nodes > 0

    def take_by_running(self, allocation: Allocation) -> None:
        """Have an allocation that runs do what it can beside what it holds. How its jobs fall into rounds nobody
        knows, so that only their node-minutes count; and no more of them than it does within the jobs' horizon."""
        spent = allocation.held
        for index, work in enumerate(self._work):
            if self._left[index] and _fits(work, allocation.num_nodes, allocation.minutes):
                budget = allocation.num_nodes * min(allocation.minutes, self._limits.horizon(work.minutes)) - spent
                cost = Fraction(work.num_nodes * work.minutes, work.per_node)
                jobs = max(0, min(self._left[index], int(budget // cost)))
                self._left[index] -= jobs
                spent += jobs * cost


def _nodes(work: Work, jobs: int, rounds: int) -> Fraction:
    """Nodes that do so many of the jobs in so many rounds."""
    if work.num_nodes == 1:
        return Fraction(jobs, work.per_node * rounds)
    return Fraction(-(-jobs // rounds) * work.num_nodes)


def _shape(some: _Rest, rest: _Rest, free: _Free, widest: int, minutes: int) -> Shape | None:
    """An allocation of so many nodes at most for some of the rest, which does of all the rest what it can. None where
    it would do nothing."""
    limits = free.limits
    if not some.jobs or some.num_nodes > widest or widest < limits.min_num_nodes:
        return None
    nodes = min(widest, max(limits.min_num_nodes, some.num_nodes, ceil(some.load(minutes))))
    used, longest = rest.take(nodes, minutes)
    shape = Shape(max(used, limits.min_num_nodes), max(longest, limits.shortest) + limits.wall_time_pad_min)
    free.take(shape)
    return shape


def _for_gaps(rest: _Rest, gaps: _Gaps, free: _Free) -> Iterator[Shape]:
    """Allocations that fill windows."""
    for window in gaps:
        while rest.num_nodes <= free.widest:
            nodes, minutes = gaps.room(window)
            widest = min(nodes, free.widest)
            some = rest.within(widest, minutes)
            shape = _shape(some, rest, free, widest, some.time_needed(widest, minutes))
            if shape is None:
                break
            gaps.fill(shape.num_nodes)
            yield shape


def _for_the_queue(rest: _Rest, free: _Free) -> Iterator[Shape]:
    """Allocations for what is left: for each horizon some of their own or, where the limits do not let everything be
    done within its horizon, for all of it together. While a job waits for the limit of all nodes to leave enough for
    it, nothing is made that would use these."""
    crowded = _is_crowded(rest, free)
    minutes = rest.time_needed(free.total, free.limits.longest)
    while rest.jobs and rest.num_nodes <= free.widest:
        some = rest if crowded else next(rest.levels())
        shape = _shape(some, rest, free, free.widest, minutes if crowded else some.horizon)
        if shape is None:
            return
        yield shape


def _is_crowded(rest: _Rest, free: _Free) -> bool:
    loads = [ceil(level.load(level.horizon)) for level in rest.levels()]
    return sum(loads) > free.total or sum(-(-load // free.limits.max_num_nodes) for load in loads) > free.slots
