"""The elastic queue on a synthetic cluster: node-hours wasted and time to solution, against simpler policies.

The cluster is a batch scheduler of its own kind: first come, first served with EASY backfill, and other users' jobs
that keep it nearly full, so that large requests wait and small ones find gaps. The campaign comes in bursts of jobs of
several kinds. A pilot in each allocation starts what fits into it, the longest first, and ends when nothing more does.
The policies are the real thing, `balsam_exec.site.sizing`. Jobs are counted by kind, so that a million of them are no
more work than a hundred. All times are in minutes, and the same seed gives the same clusters and bursts to all.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import count

from balsam_exec.site import sizing
from balsam_exec.site.sizing import Allocation, Limits, Phase, Plan, Shape, Window, Work
from benchmarks.harness import Report, main, ratios

DAY = 1440.0
#: How long the cluster has been busy when the campaign begins; how long its bursts come.
WARM_UP, CAMPAIGN = DAY, 2 * DAY
BURSTS = 8
#: Between two looks of a policy; from the start of an allocation to its first job; a pilot waits so long for more.
LOOK, START_UP, IDLE = 1.0, 0.5, 1.0
#: How much of the cluster others ask for, and what: parts of it (the small ones more often), and for how long.
LOAD = 0.85
PARTS = (1 / 128, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4)
TIMES = (60, 120, 180, 360, 720)
#: The jobs of a burst: their part of it, their nodes, minutes at most, and how many share a node.
KINDS = (
    (0.8804, 1, 5, 64),
    (0.118, 1, 20, 32),
    (0.0015, 2, 30, 1),
    (0.0001, 16, 120, 1),
)


class Clock:
    """What is to happen, and when."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._due, (when, next(self._numbers), what))

    def run(self, over: Callable[[], bool]) -> None:
        while self._due and not over():
            self.now, _, what = heapq.heappop(self._due)
            what()


@dataclass(eq=False)
class Request:
    """Nodes for a time; `started` is told when it has them."""

    num_nodes: int
    minutes: float
    started: Callable[[], None]
    since: float = 0.0
    until: float = 0.0  #: at the latest, once it runs


class Cluster:
    """A batch scheduler with its nodes."""

    def __init__(self, clock: Clock, num_nodes: int) -> None:
        self._clock = clock
        self.num_nodes = self.free = num_nodes
        self._queue: list[Request] = []
        self._running: dict[Request, None] = {}  #: in the order of their starts

    def submit(self, request: Request) -> None:
        request.since = self._clock.now
        self._queue.append(request)
        self._schedule()

    def cancel(self, request: Request) -> None:
        self._queue.remove(request)
        self._schedule()

    def end(self, request: Request) -> None:
        del self._running[request]
        self.free += request.num_nodes
        self._schedule()

    def windows(self) -> list[Window]:
        """What would start at once."""
        if not self._queue:
            return [Window(self.free, 10**6)]
        shadow, extra = self._reservation(self._queue[0])
        return [Window(self.free, int(shadow - self._clock.now)), Window(min(self.free, extra), 10**6)]

    def _schedule(self) -> None:
        while self._queue and self._queue[0].num_nodes <= self.free:
            self._start(self._queue[0])
        if not self._queue or not self.free:
            return
        shadow, extra = self._reservation(self._queue[0])
        for request in self._queue[1:]:
            in_time = self._clock.now + request.minutes <= shadow
            if request.num_nodes <= (self.free if in_time else min(self.free, extra)):
                extra -= 0 if in_time else request.num_nodes
                self._start(request)

    def _start(self, request: Request) -> None:
        self._queue.remove(request)
        self._running[request] = None
        self.free -= request.num_nodes
        request.until = self._clock.now + request.minutes
        self._clock.at(self._clock.now, request.started)

    def _reservation(self, first: Request) -> tuple[float, int]:
        """When the first of the queue starts at the latest, and how many nodes are free beside it then."""
        free = self.free
        for request in sorted(self._running, key=lambda r: r.until):
            free += request.num_nodes
            if free >= first.num_nodes:
                return request.until, free - first.num_nodes
        raise AssertionError("a request larger than the cluster")


class Others:
    """Users who keep the cluster busy."""

    def __init__(self, clock: Clock, cluster: Cluster, seed: int) -> None:
        self._clock, self._cluster = clock, cluster
        self._random = random.Random(f"others {seed}")
        self._weights = [len(PARTS) - n for n in range(len(PARTS))]
        part = sum(p * w for p, w in zip(PARTS, self._weights, strict=True)) / sum(self._weights)
        self._rate = LOAD / (part * 0.7 * sum(TIMES) / len(TIMES))
        self._come()

    def _come(self) -> None:
        self._clock.at(self._clock.now + self._random.expovariate(self._rate), self._come)
        [part] = self._random.choices(PARTS, self._weights)
        minutes, used = self._random.choice(TIMES), self._random.uniform(0.4, 1.0)
        nodes = max(1, round(part * self._cluster.num_nodes))

        def started() -> None:
            self._clock.at(self._clock.now + minutes * used, lambda: self._cluster.end(request))

        request = Request(nodes, minutes, started)
        self._cluster.submit(request)


@dataclass
class Tally:
    """What a campaign has cost and brought."""

    allocated: float = 0.0  #: node-minutes
    used: float = 0.0
    waited: float = 0.0  #: minutes from its submission to its end, of all jobs together
    last_end: float = 0.0
    solved: float = 0.0  #: from the last burst to the end of the last job
    allocations: int = 0


class Campaign:
    """The jobs: how many of each kind wait, and since when."""

    def __init__(self, clock: Clock, jobs: int, seed: int, news: Callable[[], None]) -> None:
        self._clock, self._news = clock, news
        self.kinds = [Work(nodes, minutes, 0, per_node) for _, nodes, minutes, per_node in KINDS]
        self.waiting: list[list[tuple[float, int]]] = [[] for _ in KINDS]  #: (since, how many), the first first
        self.coming = BURSTS
        self.last_burst = 0.0
        self.running = 0
        self._random = random.Random(f"campaign {seed}")
        for _ in range(BURSTS):
            self._clock.at(WARM_UP + self._random.uniform(0, CAMPAIGN), lambda: self._burst(jobs / BURSTS))

    def _burst(self, jobs: float) -> None:
        self.coming -= 1
        self.last_burst = self._clock.now
        for waiting, (part, *_) in zip(self.waiting, KINDS, strict=True):
            waiting.append((self._clock.now, max(1, round(part * jobs))))
        self._news()

    @property
    def over(self) -> bool:
        return not self.coming and not self.running and not any(self.waiting)

    def work(self) -> list[Work]:
        return [
            Work(kind.num_nodes, kind.minutes, sum(number for _, number in waiting), kind.per_node)
            for kind, waiting in zip(self.kinds, self.waiting, strict=True)
            if waiting
        ]

    def take(self, kind: int, most: int) -> list[tuple[float, int]]:
        """So many jobs of a kind, if there are, by the time since when they wait."""
        taken, waiting = [], self.waiting[kind]
        while waiting and most:
            since, number = waiting.pop(0)
            part = min(number, most)
            most -= part
            taken.append((since, part))
            if part < number:
                waiting.insert(0, (since, number - part))
        return taken

    def factor(self) -> float:
        """What jobs take of the time that they say they take at most."""
        return self._random.uniform(0.6, 1.0)


class Pilot:
    """Runs jobs in one allocation of the site."""

    def __init__(self, site: SiteModel, shape: Shape, number: int) -> None:
        self._site, self.shape, self.number = site, shape, number
        self.phase = Phase.WAITING
        self.request = Request(shape.num_nodes, shape.wall_time_min, self._started)
        self._free = shape.num_nodes
        self._held: dict[int, tuple[float, int]] = {}  #: by group of jobs: until when at the latest, on so many nodes
        self._groups = count()
        self._idle_since = 0.0
        self._began = 0.0
        site.cluster.submit(self.request)

    def facts(self, now: float) -> Allocation:
        left = self.request.until - now if self.phase is Phase.RUNNING else self.shape.wall_time_min
        held = sum(((until - now) * nodes for until, nodes in self._held.values()), 0.0)
        return Allocation(
            self.number,
            self.shape.num_nodes,
            int(left),
            self.phase,
            waited_min=now - self.request.since,
            held=Fraction(max(0, math.ceil(held))),
        )

    def fill(self) -> None:
        """Start what fits."""
        site, now = self._site, self._site.clock.now
        if self.phase is not Phase.RUNNING or now < self._began + START_UP:
            return
        order = sorted(range(len(KINDS)), key=lambda n: site.campaign.kinds[n].minutes, reverse=True)
        for number in order:
            kind = site.campaign.kinds[number]
            if self._free >= kind.num_nodes and now + kind.minutes <= self.request.until:
                taken = site.campaign.take(number, self._free // kind.num_nodes * kind.per_node)
                if taken:
                    self._run(kind, taken)
        if not self._held:
            self._idle_since = now
            site.clock.at(now + IDLE, lambda: self._end_if_idle(now))

    def _run(self, kind: Work, taken: list[tuple[float, int]]) -> None:
        site, now = self._site, self._site.clock.now
        jobs = sum(number for _, number in taken)
        nodes = -(-jobs // kind.per_node) * kind.num_nodes
        minutes = kind.minutes * site.campaign.factor()
        group = next(self._groups)
        self._held[group] = (now + kind.minutes, nodes)
        self._free -= nodes
        site.campaign.running += jobs

        def done() -> None:
            site.tally.used += minutes * jobs * kind.num_nodes / kind.per_node
            site.tally.waited += sum(number * (site.clock.now - since) for since, number in taken)
            site.tally.last_end = site.clock.now
            site.campaign.running -= jobs
            del self._held[group]
            self._free += nodes
            self.fill()

        site.clock.at(now + minutes, done)

    def _started(self) -> None:
        self.phase, self._began = Phase.RUNNING, self._site.clock.now
        self._site.clock.at(self._began + START_UP, self.fill)
        self._site.clock.at(self.request.until, self._end)

    def _end_if_idle(self, since: float) -> None:
        if not self._held and self._idle_since == since:
            self._end()

    def _end(self) -> None:
        if self.phase is Phase.RUNNING:
            self.phase = Phase.ENDING
            self._site.tally.allocated += self.shape.num_nodes * (self._site.clock.now - self._began)
            self._site.pilots.remove(self)
            self._site.cluster.end(self.request)


class Policy(ABC):
    """Decides about allocations."""

    @abstractmethod
    def plan(self, work: list[Work], living: list[Allocation], windows: list[Window]) -> Plan: ...


@dataclass
class Elastic(Policy):
    limits: Limits
    use_backfill: bool

    def plan(self, work: list[Work], living: list[Allocation], windows: list[Window]) -> Plan:
        return sizing.plan(work, living, self.limits, windows if self.use_backfill else ())


@dataclass
class Fixed(Policy):
    """So many allocations as long as jobs wait."""

    number: int
    shape: Shape

    def plan(self, work: list[Work], living: list[Allocation], windows: list[Window]) -> Plan:
        return sizing.shortfall(self.number, self.shape, living) if work else Plan()


class SiteModel:
    """One site, its campaign and its policy, on a cluster."""

    def __init__(self, policy: Policy, nodes: int, jobs: int, seed: int) -> None:
        self.clock = Clock()
        self.cluster = Cluster(self.clock, nodes)
        self.tally = Tally()
        self.pilots: list[Pilot] = []
        self._policy = policy
        self._numbers = count(1)
        Others(self.clock, self.cluster, seed)
        self.campaign = Campaign(self.clock, jobs, seed, self._fill)
        self.clock.at(WARM_UP, self._look)

    def run(self) -> Tally:
        """The whole campaign, until nothing of it is left."""
        self.clock.run(lambda: self.campaign.over and not self.pilots)
        self.tally.solved = self.tally.last_end - self.campaign.last_burst
        return self.tally

    def _fill(self) -> None:
        for pilot in list(self.pilots):
            pilot.fill()

    def _look(self) -> None:
        work, living = self.campaign.work(), [pilot.facts(self.clock.now) for pilot in self.pilots]
        if work or living:
            found = self._policy.plan(work, living, self.cluster.windows())
            for pilot in [pilot for pilot in self.pilots if pilot.number in found.delete]:
                self.pilots.remove(pilot)
                self.cluster.cancel(pilot.request)
            for shape in found.create:
                self.tally.allocations += 1
                self.pilots.append(Pilot(self, shape, next(self._numbers)))
        self.clock.at(self.clock.now + LOOK, self._look)


def policies(nodes: int) -> Iterator[tuple[str, Policy]]:
    """All may use an eighth of the cluster."""
    share = nodes // 8
    limits = Limits(
        min_num_nodes=16,
        max_num_nodes=max(16, share // 10),
        min_wall_time_min=35,
        max_wall_time_min=360,
        wall_time_pad_min=5,
        max_queued_jobs=20,
        max_total_nodes=share,
    )
    yield "elastic, with backfill", Elastic(limits, use_backfill=True)
    yield "elastic, without backfill", Elastic(limits, use_backfill=False)
    yield "ten fixed allocations of 6 h", Fixed(10, Shape(max(16, share // 10), 360))
    yield "one big allocation of 24 h", Fixed(1, Shape(share, 1440))


def measure(options: argparse.Namespace) -> Report:
    nodes, jobs = options.nodes, options.jobs
    report = Report(f"Allocations for {jobs:,} jobs in bursts, on a simulated cluster of {nodes:,} nodes")
    took: list[float] = []
    wasted: dict[str, list[float]] = {}
    waited: dict[str, list[float]] = {}
    for name, policy in policies(nodes):
        found = []
        for seed in range(options.rounds):
            start = time.perf_counter()
            found.append(SiteModel(policy, nodes, jobs, seed).run())
            took.append(time.perf_counter() - start)
        wasted[name] = [(tally.allocated - tally.used) / 60 for tally in found]
        waited[name] = [tally.waited / jobs / 60 for tally in found]
        report.add(f"{name}: node-hours wasted", wasted[name], "node-h")
        report.add(f"{name}: of all its node-hours", [100 * (1 - t.used / t.allocated) for t in found], "%")
        report.add(f"{name}: from the last burst to the last result", [t.solved / 60 for t in found], "h")
        report.add(f"{name}: from a job's submission to its end", waited[name], "h")
        report.add(f"{name}: allocations", [t.allocations for t in found], "")
    first, *others = wasted
    for name in others:
        report.add(f"{name}, beside the first: node-hours wasted", ratios(wasted[name], wasted[first]), "x")
        report.add(f"{name}, beside the first: a job's time", ratios(waited[name], waited[first]), "x")
    report.add("a simulation takes", took, "s")
    return report


if __name__ == "__main__":
    main(measure, nodes=10_000, jobs=1_000_000)
