"""Several launchers take from one queue: a simulation of pilots, of the queue as the service keeps it, and of time."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balsam_exec.launcher.events import Acquire, Arrived, Delivered, Ended, Event, Exit, Send, Start
from balsam_exec.launcher.pilot import Pilot, Terms
from balsam_exec.launcher.placement import Need, Node, place
from balsam_exec.model.jobs import Resources
from balsam_exec.model.sessions import AcquireRequest, LeasedJob, Room
from balsam_exec.platform.nodes import NodeSpec
from tests.launcher.test_pilot import DONE

CORES = 8
TERMS = Terms(ttl=math.inf)
HABITS = TERMS.habits
#: Seconds a request takes, there and back.
TRIP = 0.004
POLL = 20.0


@dataclass
class Task:
    """A job of the simulation."""

    id: int
    resources: Resources
    seconds: float
    born: float
    free_since: float  #: when it was last left by a launcher, or came
    epoch: int = 0
    holder: int | None = None
    started: float | None = None
    ended: float | None = None

    def __post_init__(self) -> None:
        self.need = Need.of(self.resources)

    @property
    def leased(self) -> LeasedJob:
        fields = self.resources.model_dump()
        return LeasedJob(id=self.id, epoch=self.epoch, app_id=1, app_digest="d", workdir="w", **fields)


class Launcher:
    """A pilot, what it waits for, and what is free in truth."""

    def __init__(self, index: int, nodes: int, now: float) -> None:
        self.index = index
        self.room = Room(max_nodes=nodes)
        self.pilot = Pilot([NodeSpec(f"n{i}", CORES) for i in range(nodes)], TERMS, now, epoch=0)
        self.asks: AcquireRequest | None = None
        self.asks_until = math.inf

    @property
    def nodes(self) -> tuple[Node, ...]:
        return self.pilot._nodes

    @property
    def makes_room(self) -> bool:
        return self.pilot._asker._claimed is not None

    def could_start(self, task: Task) -> bool:
        return not self.makes_room and place(self.nodes, task.need) is not None


class Cluster:
    """Runs events in the order of time."""

    def __init__(self, *sizes: int) -> None:
        self.now = 0.0
        self.tasks: dict[int, Task] = {}
        self._waiting: dict[int, Task] = {}  #: those that have come and not started
        self._left = 0  #: those that have not ended
        self.launchers = [Launcher(index, size, 0.0) for index, size in enumerate(sizes)]
        self.used = 0.0  #: node seconds
        self.requests = 0
        self.longest_held = 0.0  #: that a job waited in one launcher while another could have started it
        self.longest_missed = 0.0  #: that it was free and a launcher could have started it
        self._events: list[tuple[float, int, Launcher | None, Event | Task]] = []
        self._order = count()
        self._held: dict[int, float] = {}
        self._missed: dict[int, float] = {}
        for launcher in self.launchers:
            self._step(launcher)

    def add(self, seconds: float, number: int = 1, at: float = 0.0, **resources: Any) -> list[Task]:
        made = [Task(len(self.tasks) + 1 + i, Resources(**resources), seconds, at, at) for i in range(number)]
        for task in made:
            self.tasks[task.id] = task
            self._later(at, None, task)
        self._left += number
        return made

    def run(self, until: float = math.inf) -> None:
        """Until everything is done, or for so long."""
        while self.now < until and self._left:
            wakes = [(max(self.now, each.pilot.deadline), each.index, each) for each in self.launchers]
            polls = [(each.asks_until, each.index, each) for each in self.launchers]
            wake, poll = min(wakes), min(polls)
            at = min(wake[0], poll[0], self._events[0][0] if self._events else math.inf)
            if at > until:
                self.now = until
                return
            assert at < 1e5, f"it takes for ever: {list(self._waiting.values())[:5]}"
            self.now = at
            if self._events and self._events[0][0] <= at:
                _, _, launcher, event = heapq.heappop(self._events)
                if isinstance(event, Task):
                    self._waiting[event.id] = event
                    self._serve()
                else:
                    assert launcher is not None
                    self._step(launcher, event)
            elif poll[0] <= at:
                self._answer(poll[2], [])
            else:
                self._step(wake[2])
            self._watch()

    def _later(self, at: float, launcher: Launcher | None, event: Event | Task) -> None:
        heapq.heappush(self._events, (at, next(self._order), launcher, event))

    def _step(self, launcher: Launcher, *events: Event) -> None:
        for event in events:
            if isinstance(event, Ended):
                self.tasks[event.job_id].ended = self.now
                self._left -= 1
        for action in launcher.pilot.step(events, self.now):
            match action:
                case Start(job):
                    task = self.tasks[job.id]
                    assert task.holder == launcher.index
                    assert task.started is None, "a job runs twice"
                    task.started = self.now
                    del self._waiting[task.id]
                    self.used += task.seconds * task.resources.num_nodes / task.resources.node_packing_count
                    self._later(self.now + task.seconds, launcher, Ended(job.id, DONE))
                case Acquire():
                    self.requests += 1
                    assert launcher.asks is None
                    launcher.asks = action.request(launcher.room, "small_first", POLL)
                    launcher.asks_until = self.now + launcher.asks.timeout
                    self._serve()
                case Send(reports, widen):
                    self.requests += 1
                    for report in reports:
                        if report.state is None:
                            self._release(self.tasks[report.job_id])
                    self._later(self.now + TRIP, launcher, Delivered())
                    self._serve()
                    if widen and launcher.asks is not None:
                        self._answer(launcher, [])
                case Exit():
                    raise AssertionError("nobody told it to end")

    def _release(self, task: Task) -> None:
        assert task.started is None
        task.holder, task.free_since = None, self.now

    def _serve(self) -> None:
        """Give jobs to those who wait for some, in the order in which they asked."""
        for launcher in sorted(self.launchers, key=lambda each: each.asks_until):
            if launcher.asks is not None and (found := self._fitting(launcher.asks)):
                self._answer(launcher, found)

    def _fitting(self, asked: AcquireRequest) -> list[Task]:
        left = math.inf if asked.max_aggregate_nodes is None else asked.max_aggregate_nodes * (1 + 1e-9)
        oldest_first = asked.min_nodes > 1
        fitting = [task for task in self._waiting.values() if self._fits(task, asked)]
        order = sorted(fitting, key=lambda task: (not oldest_first and task.resources.num_nodes, task.born, task.id))
        found: list[Task] = []
        for task in order:
            left -= task.resources.num_nodes / task.resources.node_packing_count
            if (left < 0 and found) or len(found) == asked.max_jobs:
                break
            found.append(task)
        return found

    def _fits(self, task: Task, asked: AcquireRequest) -> bool:
        wants = task.resources
        is_free = task.holder is None and task.free_since + asked.min_wait_sec <= self.now
        fits = asked.min_nodes <= wants.num_nodes <= asked.max_nodes
        cores = asked.max_cores_per_node
        return (
            is_free
            and fits
            and wants.node_packing_count >= asked.min_packing_count
            and (cores is None or wants.cores_per_node <= cores)
        )

    def _answer(self, launcher: Launcher, tasks: Iterable[Task]) -> None:
        for task in tasks:
            task.holder = launcher.index
            task.epoch += 1
        launcher.asks, launcher.asks_until = None, math.inf
        self._later(self.now + TRIP, launcher, Arrived(tuple(task.leased for task in tasks)))

    def _watch(self) -> None:
        """For how long jobs have waited that could have been started."""
        possible: dict[tuple[Need, int | None], bool] = {}
        for task in self._waiting.values():
            kind = task.need, task.holder
            if kind not in possible:
                others = [each for each in self.launchers if each.index != task.holder]
                possible[kind] = any(each.could_start(task) for each in others)
            for since, applies in ((self._held, task.holder is not None), (self._missed, task.holder is None)):
                if possible[kind] and applies:
                    since.setdefault(task.id, self.now)
                else:
                    since.pop(task.id, None)
        for since in (self._held, self._missed):
            for task_id in since.keys() - self._waiting.keys():
                del since[task_id]
        self.longest_held = max([self.longest_held, *(self.now - since for since in self._held.values())])
        self.longest_missed = max([self.longest_missed, *(self.now - since for since in self._missed.values())])


def test_two_launchers_share_what_there_is() -> None:
    cluster = Cluster(4, 4)
    cluster.add(10, 160)
    cluster.run()
    assert cluster.now == pytest.approx(200, rel=0.02)
    assert cluster.longest_held < HABITS.hold + 1
    assert cluster.requests < 4 * 160


def test_short_jobs_keep_two_launchers_busy() -> None:
    cluster = Cluster(1, 1)
    cluster.add(0.05, 500, node_packing_count=8)
    cluster.run()
    assert cluster.used / (2 * cluster.now) > 0.9
    assert cluster.requests < 500


@pytest.mark.parametrize("sizes", [(4,), (4, 4), (4, 2, 1)])
def test_a_wide_job_does_not_starve_in_a_stream_of_narrow_ones(sizes: tuple[int, ...]) -> None:
    cluster = Cluster(*sizes)
    for second in range(600):  # more than there is room for
        cluster.add(10, 1 + sum(sizes) // 10, at=float(second))
    [large] = cluster.add(10, at=5.0, num_nodes=4)
    cluster.run(until=120)
    assert large.started is not None
    assert large.started < 5 + 4 * HABITS.patience


def test_a_job_for_a_whole_node_does_not_starve_among_packed_ones() -> None:
    cluster = Cluster(1)
    for second in range(200):
        cluster.add(8, 1, at=float(second), node_packing_count=6)
    [large] = cluster.add(10, at=5.2)
    cluster.run(until=120)
    assert large.started is not None
    assert large.started < 5 + 4 * HABITS.patience


def test_many_wide_jobs_do_not_keep_nodes_empty() -> None:
    cluster = Cluster(4, 4)
    cluster.add(20, 400)
    cluster.add(20, 50, num_nodes=2)
    cluster.add(20, 20, num_nodes=3)
    cluster.run()
    assert cluster.used / (8 * cluster.now) > 0.85


def test_an_idle_launcher_gets_what_a_busy_one_cannot_start() -> None:
    cluster = Cluster(2, 2)
    cluster.add(1000, 1)
    cluster.run(until=1)
    [large] = cluster.add(10, at=1.0, num_nodes=2)
    cluster.run(until=30)
    assert large.started is not None
    assert large.started < 1 + 2 * HABITS.hold


SHAPES = st.fixed_dictionaries(
    {
        "num_nodes": st.sampled_from([1, 1, 1, 2, 3, 4]),
        "node_packing_count": st.sampled_from([1, 1, 2, 4, 8]),
        "ranks_per_node": st.sampled_from([1, 1, 2, 5]),
    }
)
LOADS = st.lists(
    st.tuples(st.integers(1, 12), st.sampled_from([0.1, 1.0, 15.0, 60.0]), st.integers(0, 90), SHAPES),
    min_size=1,
    max_size=6,
)


@settings(deadline=None, max_examples=60)
@given(sizes=st.lists(st.integers(1, 4), min_size=2, max_size=3), loads=LOADS)
def test_everything_runs_once_and_nobody_sits_on_what_others_could_run(sizes: list[int], loads: list[Any]) -> None:
    cluster = Cluster(4, *sizes)
    for number, seconds, at, shape in loads:
        cluster.add(seconds, number, at=float(at), **shape)
    cluster.run()
    assert cluster.longest_held < HABITS.offer + 2 * HABITS.moment
    assert cluster.longest_missed < 3 * POLL
