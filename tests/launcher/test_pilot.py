"""What the pilot decides, with neither jobs nor service nor clock."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balsam_exec.launcher.events import (
    Acquire,
    Action,
    Alive,
    Arrived,
    Delivered,
    Drain,
    Ended,
    Event,
    Exit,
    Kill,
    Lost,
    Outcome,
    Refused,
    Send,
    Stale,
    Start,
    StopAsking,
)
from balsam_exec.launcher.pilot import Pilot, Terms
from balsam_exec.launcher.placement import Node, place
from balsam_exec.model.jobs import Result
from balsam_exec.model.sessions import LeasedJob, Report, Room
from balsam_exec.model.states import JobState
from balsam_exec.platform.nodes import NodeSpec

DONE = Outcome(JobState.RUN_DONE, Result(ok=True, value=b"v"), {})
FAILED = Outcome(JobState.RUN_ERROR, Result(ok=False, error="exit code 1", reason="exit"), {"error": "exit code 1"})
TERMS = Terms(ttl=60, wall_time=3600, idle=30, grace=5)
HABITS = TERMS.habits
#: Of half a node of four cores.
NARROW = Acquire(
    max_jobs=1,
    max_wall_time_min=59,
    max_aggregate_nodes=0.5,
    narrow=True,
    max_nodes=1,
    max_cores_per_node=4,
    min_packing_count=2,
)


def job(job_id: int, **fields: Any) -> LeasedJob:
    values = {"node_packing_count": 2, **fields}
    return LeasedJob(id=job_id, epoch=values.pop("epoch", 1), app_id=1, app_digest="d", workdir="w", **values)


class Ship:
    """A pilot and what it has decided."""

    def __init__(self, cores: int = 2, gpus: int = 0, terms: Terms = TERMS, nodes: int = 1) -> None:
        self.now = 100.0
        node = NodeSpec("n", cores, tuple(map(str, range(gpus))))
        self.pilot = Pilot([node] * nodes, terms, self.now, epoch=1e9)
        self.actions: list[Action] = []

    def step(self, *events: Event, after: float = 0.0) -> list[Action]:
        self.now += after
        self.actions = self.pilot.step(events, self.now)
        return self.actions

    def sleep(self) -> list[Action]:
        """Until the pilot wants to be woken."""
        assert self.pilot.deadline < math.inf
        return self.step(after=max(0.0, self.pilot.deadline - self.now))

    def started(self) -> list[int]:
        return [a.job.id for a in self.actions if isinstance(a, Start)]

    def reports(self) -> list[tuple[int, JobState | None]]:
        return [(r.job_id, r.state) for a in self.actions if isinstance(a, Send) for r in a.reports]

    def acquires(self) -> list[Acquire]:
        return [a for a in self.actions if isinstance(a, Acquire)]

    def kills(self) -> list[tuple[int, int]]:
        return [(a.job_id, a.signum) for a in self.actions if isinstance(a, Kill)]


def test_it_asks_for_as_many_jobs_as_fit() -> None:
    ship = Ship(cores=4)
    ship.step()
    assert [a.max_jobs for a in ship.acquires()] == [4]
    assert ship.acquires()[0].max_wall_time_min == (3600 - 15) // 60
    assert ship.step() == []  # one request at a time


def test_a_short_job_is_told_in_one_report() -> None:
    ship = Ship()
    ship.step()
    ship.step(Arrived((job(1),)))
    assert ship.started() == [1]
    assert ship.reports() == []
    ship.step(Ended(1, DONE), after=0.001)
    assert ship.reports() == [(1, JobState.RUNNING), (1, JobState.RUN_DONE)]
    first, second = next(a for a in ship.actions if isinstance(a, Send)).reports
    assert (second.timestamp - first.timestamp).total_seconds() == pytest.approx(0.001)
    assert first.timestamp.timestamp() == pytest.approx(1e9 + 100)


def test_a_long_job_is_told_to_run_after_a_moment() -> None:
    ship = Ship()
    ship.step(Arrived((job(1),)))
    ship.sleep()
    assert ship.now == pytest.approx(100.02)
    assert ship.reports() == [(1, JobState.RUNNING)]


def test_ends_linger_while_more_work_waits() -> None:
    ship = Ship()
    ship.step(Arrived(tuple(job(i, node_packing_count=1) for i in (1, 2, 3))))
    ship.step(Ended(1, DONE))
    assert ship.reports() == []
    ship.step(Ended(2, DONE), after=0.001)
    assert [job_id for job_id, _ in ship.reports()] == [1, 1, 2, 2, 3]


def test_a_job_that_does_not_fit_is_passed_and_given_back() -> None:
    ship = Ship(cores=4)
    ship.step()
    ship.step(Arrived((job(1), job(2, node_packing_count=1), job(3))))
    assert ship.started() == [1, 3]
    ship.step(Ended(1, DONE), after=1)
    assert ship.started() == []
    assert ship.acquires() == [NARROW]  # what fits beside the other: half of the node
    ship.step(Delivered())
    ship.sleep()
    assert ship.reports() == [(2, None)]
    assert ship.now == pytest.approx(100 + HABITS.hold)


def test_what_fits_again_is_asked_for_again() -> None:
    ship = Ship(cores=4)
    ship.step()
    ship.step(Arrived((job(1), job(2, node_packing_count=1))))
    assert ship.acquires() == [NARROW]
    ship.step(Delivered(), after=HABITS.hold)
    ship.step(Delivered(), Ended(1, DONE))
    assert [a.widen for a in ship.actions if isinstance(a, Send)] == [True]
    ship.step(Arrived(()))
    assert [a.narrow for a in ship.acquires()] == [False]


def busy_with_a_misfit() -> Ship:
    """Half of the node is taken for long, and job 2, which wants all of it, was given back."""
    ship = Ship(cores=4)
    ship.step()
    ship.step(Arrived((job(1), job(2, node_packing_count=1))))
    ship.step(Delivered(), Alive(), after=HABITS.hold)
    ship.step(Delivered(), Alive(), after=HABITS.patience)
    ship.step(Arrived(()))
    assert [(a.claims, a.min_wait_sec) for a in ship.acquires()] == [(True, HABITS.patience)]
    return ship


def test_room_is_made_for_a_job_that_has_waited_for_long() -> None:
    ship = busy_with_a_misfit()
    ship.step(Arrived((job(2, node_packing_count=1, epoch=2),)))
    assert ship.acquires() == []
    ship.step(Ended(1, DONE), after=1)
    assert ship.started() == [2]


def test_a_job_that_room_is_made_for_is_offered_to_others() -> None:
    ship = busy_with_a_misfit()
    ship.step(Arrived((job(2, node_packing_count=1, epoch=2),)))
    ship.step(Delivered(), Alive(), after=HABITS.offer)
    assert ship.reports() == [(2, None)]
    assert ship.acquires() == []
    ship.step(Delivered())
    ship.sleep()
    (again,) = ship.acquires()
    assert (again.claims, again.min_wait_sec) == (True, 0)
    assert ship.now == pytest.approx(100 + HABITS.hold + HABITS.patience + HABITS.offer + HABITS.moment)
    ship.step(Arrived(()))  # another has it
    assert ship.acquires() == [NARROW]


@pytest.mark.parametrize("how", ["killed", "too late"])
def test_room_is_made_no_longer_for_a_job_that_is_gone(how: str) -> None:
    ship = busy_with_a_misfit()
    ship.step(Arrived((job(2, node_packing_count=1, epoch=2, wall_time_min=59),)))
    assert ship.acquires() == []
    if how == "killed":
        ship.step(Delivered(), Alive(frozenset({(2, 2)})))
    else:
        ship.step(Delivered(), after=30)
    assert [ask.claims for ask in ship.acquires()] == [False]


def test_room_is_made_seldom() -> None:
    ship = busy_with_a_misfit()
    ship.step(Arrived((job(2, node_packing_count=1, epoch=2),)))
    ship.step(Delivered(), Alive(), Ended(1, DONE), after=9)
    assert ship.started() == [2]
    for _ in range(3):
        ship.step(Delivered())
    assert ship.pilot.deadline >= ship.now + 4 * 9


def test_long_jobs_are_not_hoarded() -> None:
    ship = Ship(cores=2)
    ship.step(Arrived((job(1, node_packing_count=1),)))
    assert ship.acquires() == []
    ship.step(Ended(1, DONE), after=50)
    assert [a.max_jobs for a in ship.acquires()] == [1]  # exclusive ones came, so one has room


def test_short_jobs_are_fetched_ahead() -> None:
    ship = Ship(cores=2)
    ship.step()
    waiting, next_id, most = 2, 1, 0
    for _ in range(1000):
        arrived = [Arrived(tuple(job(i) for i in range(next_id, next_id + waiting)))] if waiting else []
        next_id += waiting
        running = list(ship.pilot._running)
        ship.step(*arrived, *(Ended(i, DONE) for i in running), Delivered(), after=0.001)
        waiting = sum(a.max_jobs for a in ship.acquires())
        most = max(most, waiting)
    assert 200 < most < 1200  # about 0.4 s of 2000 a second


def test_jobs_that_can_never_run_here_fail_with_the_reason() -> None:
    ship = Ship()
    ship.step(Arrived((job(1, gpus_per_rank=1), job(2, num_nodes=2))))
    assert ship.started() == []
    assert ship.reports() == [
        (1, JobState.RUNNING),
        (1, JobState.RUN_ERROR),
        (2, JobState.RUNNING),
        (2, JobState.RUN_ERROR),
    ]


def test_a_job_that_takes_longer_than_is_left_is_given_back() -> None:
    ship = Ship()
    ship.step(Arrived((job(1, wall_time_min=59), job(2, wall_time_min=60))))
    assert ship.started() == [1]
    assert ship.reports() == [(1, JobState.RUNNING), (2, None)]


def test_idle_it_ends() -> None:
    ship = Ship()
    ship.step(Alive(), Arrived(()))
    ship.step(Alive(), after=29)
    ship.step(Arrived((job(1),)))
    assert ship.sleep()  # RUNNING is told
    ship.step(Delivered(), Alive(), after=31)
    assert ship.actions == []  # it runs, so it is not idle
    ship.step(Ended(1, DONE), Alive())
    ship.step(Delivered())
    ended = ship.now
    assert not any(isinstance(a, Exit) for a in ship.actions)
    ship.sleep()
    assert ship.now == pytest.approx(ended + 30)
    assert [a for a in ship.actions if isinstance(a, Exit)] == [Exit("there was nothing to do", lost=False)]


def test_without_patience_it_asks_once_more_before_it_ends() -> None:
    ship = Ship(terms=Terms(ttl=60, idle=0))
    ship.step()
    assert len(ship.acquires()) == 1
    ship.step(Arrived((job(1, node_packing_count=1),)), after=0.5)
    ship.step(Ended(1, DONE))
    assert len(ship.acquires()) == 1
    ship.step(Delivered())
    assert ship.actions == []
    ship.sleep()
    assert ship.now == pytest.approx(101.5)
    assert ship.actions == [Exit("there was nothing to do", lost=False)]


def test_small_jobs_are_asked_for_while_a_large_one_waits() -> None:
    ship = Ship(cores=4)
    ship.step()
    ship.step(Arrived((job(1, node_packing_count=4), job(2, node_packing_count=1))), after=1)
    assert ship.started() == [1]
    assert [(a.max_jobs, a.max_aggregate_nodes, a.min_packing_count) for a in ship.acquires()] == [(3, 0.75, 2)]
    ship.step(Arrived((job(3, node_packing_count=4),)))
    assert ship.started() == [3]
    assert [(a.max_jobs, a.max_aggregate_nodes, a.min_packing_count) for a in ship.acquires()] == [(2, 0.5, 2)]


def test_what_is_free_beside_large_jobs_is_asked_for() -> None:
    ship = Ship(cores=8, gpus=2)
    ship.step()
    ship.step(Arrived((job(1, node_packing_count=100, threads_per_rank=5, gpus_per_rank=1),)))
    assert ship.started() == [1]
    (ask,) = ship.acquires()
    assert (ask.narrow, ask.max_jobs, ask.max_cores_per_node, ask.max_gpus_per_node) == (True, 1, 3, 1)
    asked = ask.request(Room(max_nodes=1, max_gpus_per_node=2), "small_first", 20)
    assert (asked.max_nodes, asked.max_gpus_per_node, asked.min_packing_count, asked.timeout) == (1, 1, 2, 20)


def test_jobs_of_several_nodes_have_their_turn() -> None:
    ship = Ship(nodes=4)
    ship.step()
    ship.step(Arrived(tuple(job(i, node_packing_count=1) for i in range(1, 5))))
    assert ship.acquires() == []
    ship.step(Delivered(), Alive(), after=HABITS.patience / 4)
    (ask,) = ship.acquires()
    assert (ask.claims, ask.min_nodes, ask.min_wait_sec, ask.max_jobs) == (True, 2, HABITS.patience, 1)
    ship.step(Arrived((job(5, num_nodes=3, node_packing_count=1),)))
    for ended in (1, 2):
        ship.step(Ended(ended, DONE), after=1)
        assert ship.started() == ship.acquires() == []
    ship.step(Ended(3, DONE), after=1)
    assert ship.started() == [5]


def test_it_drains_before_the_end_of_the_wall_time() -> None:
    ship = Ship(terms=Terms(ttl=1e6, wall_time=600, margin=15, grace=5))
    ship.step(Arrived((job(1), job(2))))
    assert ship.started() == [1, 2]
    ship.step(Delivered(), after=1)
    ship.step(Delivered(), after=582)
    ship.step(Arrived((job(3),)), after=1)
    assert ship.started() == []
    ship.sleep()
    assert ship.now == pytest.approx(100 + 585)
    assert ship.kills() == [(1, signal.SIGTERM), (2, signal.SIGTERM)]
    assert ship.reports() == [(3, None)]
    ship.step(Delivered(), Ended(1, FAILED))
    assert ship.reports() == [(1, JobState.RUN_TIMEOUT)]
    ship.step(Delivered())
    ship.sleep()
    assert ship.now == pytest.approx(100 + 590)
    assert ship.kills() == [(2, signal.SIGKILL)]
    ship.step(Ended(2, FAILED))
    assert ship.reports() == [(2, JobState.RUN_TIMEOUT)]
    ship.step(Delivered())
    assert ship.actions == [Exit("the allocation's time is over", lost=False)]


def test_a_value_that_comes_while_draining_counts() -> None:
    ship = Ship()
    ship.step(Arrived((job(1),)))
    ship.step(Drain("SIGTERM"))
    ship.step(Ended(1, DONE), Delivered())
    assert ship.reports()[-1] == (1, JobState.RUN_DONE)


def failed_with(return_code: int, reason: str = "exit") -> Outcome:
    result = Result(ok=False, error=f"exit code {return_code}", reason=reason, return_code=return_code)
    return Outcome(JobState.RUN_ERROR, result, {})


TERMINATED = failed_with(-15)


@pytest.mark.parametrize("apart", [0, 0.8])
@pytest.mark.parametrize("return_code", [-15, 143, -9, 137])
def test_the_end_of_an_allocation_may_come_to_jobs_first(apart: float, return_code: int) -> None:
    """Slurm sends its SIGTERM to all processes at once."""
    ship = Ship()
    ship.step(Arrived((job(1), job(2))))
    ship.step(Delivered(), Ended(1, failed_with(return_code)), after=1)
    ship.step(Drain("SIGTERM"), after=apart)
    assert ship.kills() == [(2, signal.SIGTERM)]
    ship.step(Delivered(), Ended(2, TERMINATED))
    assert (1, JobState.RUN_TIMEOUT) in ship.reports()
    assert (2, JobState.RUN_TIMEOUT) in ship.reports()


@pytest.mark.parametrize(
    ("fields", "outcome", "waits"),
    [
        ({"ranks_per_node": 2}, failed_with(7), True),
        ({"num_nodes": 2}, failed_with(1, "died"), True),
        ({"ranks_per_node": 2}, failed_with(1, "exception"), False),
        ({}, failed_with(7), False),
        ({"ranks_per_node": 2}, FAILED, False),  # it could not even be started
        ({"ranks_per_node": 2}, DONE, False),
    ],
)
def test_what_a_lost_node_may_have_ended_waits_for_its_verdict(
    fields: dict[str, Any], outcome: Outcome, waits: bool
) -> None:
    ship = Ship(nodes=fields.get("num_nodes", 1))
    ship.step()
    ship.step(Arrived((job(1, **fields),)))
    ship.step(Delivered(), Ended(1, outcome), after=1)
    assert ((1, outcome.state) in [r for r in ship.reports() if r[1] is not JobState.RUNNING]) is not waits
    ship.step(Arrived((job(2, num_nodes=fields.get("num_nodes", 1), node_packing_count=1),)))
    assert ship.started() == [2]  # its place is free at once
    ship.step(Delivered(), Delivered(), Drain("SIGTERM"))
    assert ((1, JobState.RUN_TIMEOUT) in ship.reports()) is waits


def test_a_job_that_its_owner_kills_before_its_verdict_is_killed() -> None:
    ship = Ship()
    ship.step(Arrived((job(1),)))
    ship.step(Delivered(), Ended(1, TERMINATED), after=1)
    ship.step(Delivered(), Alive(frozenset({(1, 1)})), after=0.1)
    assert ship.reports() == [(1, JobState.USER_KILLED)]


def test_a_stale_job_has_no_verdict() -> None:
    ship = Ship()
    ship.step(Arrived((job(1),)))
    ship.sleep()
    ship.step(Ended(1, TERMINATED))
    ship.step(Stale(frozenset({1})))
    ship.step(Drain("SIGTERM"))
    assert ship.actions == [Exit("SIGTERM", lost=False)]


def test_a_job_may_be_terminated_between_the_end_of_its_allocation_and_the_kill() -> None:
    ship = Ship()
    ship.step(Arrived((job(1),)))
    ship.step(Delivered(), Drain("SIGTERM"), after=1)
    assert ship.kills() == [(1, signal.SIGTERM)]
    ship.step(Ended(1, TERMINATED, unasked=True), Delivered())
    assert ship.reports() == [(1, JobState.RUN_TIMEOUT)]


def test_a_job_that_is_ended_by_somebody_else_fails() -> None:
    ship = Ship()
    ship.step(Arrived((job(1),)))
    ship.step(Delivered(), Ended(1, TERMINATED), after=1)
    before = ship.now
    while (1, JobState.RUN_ERROR) not in ship.reports():
        ship.step(Delivered())
        ship.sleep()
    assert ship.now == pytest.approx(before + 1.0, abs=0.1)


def test_a_second_drain_does_not_wait() -> None:
    ship = Ship()
    ship.step(Arrived((job(1),)))
    ship.step(Drain("SIGTERM"))
    assert ship.kills() == [(1, signal.SIGTERM)]
    ship.step(Drain("SIGTERM"), after=1.1)
    assert ship.kills() == [(1, signal.SIGKILL)]


def test_a_signal_that_comes_by_several_ways_is_one() -> None:
    """Slurm signals the launcher and both guardians, and these hand on theirs."""
    ship = Ship()
    ship.step(Arrived((job(1),)))
    ship.step(Drain("SIGTERM"), Drain("SIGTERM"))
    ship.step(Drain("SIGTERM"), after=0.3)
    assert ship.kills() == []
    ship.sleep()
    assert ship.now == pytest.approx(100 + TERMS.grace)
    assert ship.kills() == [(1, signal.SIGKILL)]


def test_what_arrives_while_draining_goes_back() -> None:
    ship = Ship()
    ship.step(Arrived((job(1),)))
    ship.step(Drain("SIGTERM"))
    ship.step(Arrived((job(2),)), Ended(1, FAILED), Delivered())
    assert ship.started() == []
    assert ship.reports() == [(1, JobState.RUNNING), (2, None), (1, JobState.RUN_TIMEOUT)]


def test_stale_jobs_are_killed_and_not_told_of() -> None:
    ship = Ship()
    ship.step(Arrived((job(1), job(2))))
    ship.sleep()
    ship.step(Stale(frozenset({1})))
    assert ship.kills() == [(1, signal.SIGKILL)]
    assert ship.reports() == [(2, JobState.RUNNING)]
    ship.step(Ended(1, FAILED), Delivered())
    assert ship.reports() == []


def test_a_job_that_comes_back_waits_for_the_end_of_its_last_run() -> None:
    ship = Ship()
    ship.step(Arrived((job(1),)))
    ship.sleep()
    ship.step(Stale(frozenset({1})))
    ship.step(Arrived((job(1, epoch=3),)))
    assert ship.started() == []
    ship.step(Ended(1, FAILED))
    assert ship.started() == [1]


def test_a_job_that_came_back_before_its_old_lease_was_known_to_be_over_is_kept() -> None:
    ship = Ship()
    ship.step(Arrived((job(1),)))
    ship.sleep()
    ship.step(Arrived((job(1, epoch=3),)))
    ship.step(Stale(frozenset({1})))
    assert ship.kills() == [(1, signal.SIGKILL)]
    ship.step(Ended(1, FAILED))
    assert ship.started() == [1]
    ship.step(Ended(1, DONE))
    assert ship.reports() == [(1, JobState.RUNNING), (1, JobState.RUN_DONE)]


def test_without_the_service_it_goes_on_until_the_lease_is_over() -> None:
    ship = Ship(terms=Terms(ttl=60, grace=5))
    ship.step(Alive(), Arrived((job(1),)))
    ship.step(Alive(), after=30)
    assert ship.reports() == [(1, JobState.RUNNING)]  # and no answer comes
    ship.sleep()
    assert ship.now == pytest.approx(100 + 30 + 60)
    assert ship.kills() == [(1, signal.SIGKILL)]
    ship.step(Ended(1, FAILED))
    (end,) = ship.actions
    assert isinstance(end, Exit)
    assert end.lost
    assert "cannot be renewed" in end.reason


def test_a_lost_session_ends_it() -> None:
    ship = Ship()
    ship.step(Lost("no such session"))
    assert ship.actions == [Exit("no such session", lost=True)]


def test_a_refused_report_does_not_stop_the_others() -> None:
    ship = Ship()
    ship.step(Arrived((job(1), job(2))))
    ship.step(Ended(1, DONE), Ended(2, DONE))
    assert len(ship.reports()) == 4
    ship.step(Refused("no"))
    assert len(ship.reports()) == 2
    ship.step(Delivered())
    assert len(ship.reports()) == 2


class World:
    """Everything around a pilot, making random moves: jobs, service, processes."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data
        self.ship = Ship(cores=data.draw(st.integers(1, 4)), gpus=1)
        self.asked = 0
        self.under_way: tuple[Report, ...] | None = None
        self.leased: dict[int, int] = {}
        self.alive: set[int] = set()
        self.told: dict[int, list[JobState | None]] = {}
        self.stale: set[int] = set()
        self.count = 0
        self.exit: Exit | None = None

    def play(self, moves: Iterable[str]) -> None:
        self.do()
        for move in moves:
            if self.exit:
                return
            self.move(move)
        # Now everything is answered, and it must come to an end with every job told.
        self.do(Drain("the end"), Drain("the end"))
        for _ in range(200):
            if self.exit:
                break
            self.move("report")
            self.move("end")
            self.do(after=1)
        assert self.exit is not None
        assert not self.alive
        if not self.exit.lost:
            # What was asked for and not answered goes with the session; all else has been told.
            assert all(self.told[i][-1:] != [JobState.RUNNING] for i in self.leased if i not in self.stale)
            assert all(self.told[i] for i in self.leased if i not in self.stale)

    def move(self, move: str) -> None:
        match move:
            case "arrive" if self.asked:
                count = self.data.draw(st.integers(0, self.asked))
                jobs = [self.new_job() for _ in range(count)]
                self.asked = 0
                self.do(Arrived(tuple(jobs)))
            case "end" if self.alive:
                job_id = self.data.draw(st.sampled_from(sorted(self.alive)))
                self.alive.discard(job_id)
                self.do(Ended(job_id, self.data.draw(st.sampled_from([DONE, FAILED]))))
            case "report" if self.under_way:
                batch, self.under_way = self.under_way, None
                stale = {r.job_id for r in batch} & self.stale
                if stale:
                    self.do(Stale(frozenset(stale)))
                    return
                for report in batch:
                    self.told[report.job_id].append(report.state)
                self.do(Delivered())
            case "steal" if self.leased:
                self.stale.add(self.data.draw(st.sampled_from(sorted(self.leased))))
            case "wait":
                self.do(Alive(), after=self.data.draw(st.floats(0, 20)))
            case "drain":
                self.do(Drain("SIGTERM"))

    def new_job(self) -> LeasedJob:
        self.count += 1
        self.leased[self.count] = 1
        self.told[self.count] = []
        return job(
            self.count,
            node_packing_count=self.data.draw(st.integers(1, 4)),
            ranks_per_node=self.data.draw(st.integers(1, 3)),
            gpus_per_rank=self.data.draw(st.sampled_from([0, 0, 0.5, 1])),
            wall_time_min=self.data.draw(st.sampled_from([0, 0, 30, 100])),
        )

    def do(self, *events: Event, after: float = 0.0) -> None:
        for action in self.ship.step(*events, after=after):
            match action:
                case Start(started):
                    assert started.id not in self.alive
                    self.alive.add(started.id)
                case Kill(job_id):
                    assert job_id in self.alive
                case Acquire(max_jobs):
                    assert not self.asked
                    self.asked = max_jobs
                case Send(reports):
                    assert self.under_way is None
                    self.under_way = reports
                case Exit():
                    assert self.exit is None
                    self.exit = action
        pilot = self.ship.pilot
        free = pilot._nodes[0]
        assert free.occupancy >= 0
        assert (free == Node.empty(free.spec)) == (not self.alive)
        waiting = pilot._backlog.values()
        has_nothing = not (self.alive or waiting or pilot._ending)
        assert not has_nothing or self.asked or pilot._asker.due(False) < math.inf, "it asks for nothing, for ever"
        if pilot._claim is None:
            assert not any(place(pilot._nodes, each.need) for each in waiting), "a free fit is left unused"


@settings(deadline=None)
@given(st.data())
def test_no_job_is_lost_whatever_happens(data: st.DataObject) -> None:
    moves = data.draw(st.lists(st.sampled_from(["arrive", "arrive", "end", "end", "report", "steal", "wait", "drain"])))
    World(data).play(moves)


# --- requests that stand


def stopped(ship: Ship) -> int:
    return sum(isinstance(action, StopAsking) for action in ship.actions)


def test_what_is_asked_for_whole_may_come_little_by_little() -> None:
    ship = Ship(cores=4)
    ship.step()
    assert [a.stands for a in ship.acquires()] == [True]
    for job_id in (1, 2):
        ship.step(Arrived((job(job_id, node_packing_count=4),), more=True))
        assert ship.started() == [job_id]
        assert ship.acquires() == []
    ship.step(Ended(1, DONE))
    assert ship.acquires() == []
    ship.step(Arrived(()))
    assert [(a.max_jobs, a.stands) for a in ship.acquires()] == [(3, True)]


@pytest.mark.parametrize("ship", [Ship(cores=1), Ship(cores=4, nodes=2)], ids=["one job", "several nodes"])
def test_one_job_and_a_wide_launchers_come_at_once(ship: Ship) -> None:
    ship.step()
    assert [a.stands for a in ship.acquires()] == [False]


def test_a_request_that_stands_is_stopped_once_a_job_does_not_fit() -> None:
    ship = Ship(cores=4)
    ship.step()
    ship.step(Arrived((job(1),), more=True))
    assert stopped(ship) == 0
    ship.step(Arrived((job(2, node_packing_count=1),), more=True))
    assert (stopped(ship), ship.acquires()) == (1, [])
    ship.step(Arrived((job(3, node_packing_count=1),), more=True))  # it was on its way
    assert (stopped(ship), ship.acquires()) == (0, [])
    ship.step(Arrived(()))
    assert (stopped(ship), ship.acquires()) == (0, [NARROW])


def test_a_request_that_stands_is_stopped_once_its_time_is_wrong() -> None:
    ship = Ship(cores=4)
    ship.step()
    ship.now += 120
    # When it was asked for there were as many minutes.
    ship.step(Alive(), Arrived((job(1, wall_time_min=59),), more=True))
    assert (stopped(ship), ship.started()) == (1, [])
    assert (1, None) in ship.reports()
    ship.step(Arrived(()))
    assert [(a.stands, a.max_wall_time_min) for a in ship.acquires()] == [(True, 57)]


def test_a_second_request_that_stands_can_be_stopped_too() -> None:
    ship = Ship(cores=4)
    ship.step()
    ship.step(Arrived((job(1), job(2, node_packing_count=1)), more=True))
    assert stopped(ship) == 1
    ship.step(Arrived(()), Ended(1, DONE))
    assert ship.started() == [2]
    ship.step(Ended(2, DONE))
    assert [a.stands for a in ship.acquires()] in ([True], [])
    ship.step(Arrived(()))
    ship.step(Arrived((job(3), job(4, node_packing_count=1)), more=True))
    assert stopped(ship) == 1


def test_who_ends_stops_what_stands_and_gives_back_what_still_comes() -> None:
    ship = Ship(cores=4)
    ship.step()
    ship.step(Arrived((job(1),), more=True))
    ship.step(Drain("the end"))
    assert stopped(ship) == 1
    ship.step(Delivered(), Arrived((job(2),), more=True))
    assert (stopped(ship), ship.started()) == (0, [])
    assert (2, None) in ship.reports()
    ship.step(Arrived(()))
    assert (stopped(ship), ship.acquires()) == (0, [])


def test_what_is_asked_for_at_once_is_not_stopped() -> None:
    ship = Ship(cores=1)
    ship.step()
    ship.step(Drain("the end"))
    assert stopped(ship) == 0


def a_lease_everywhere() -> Ship:
    """Job 1 runs, job 2 waits, job 3 has ended and its report is under way, job 4 has and its report waits."""
    ship = Ship(cores=4)
    ship.step()
    ship.step(Arrived(tuple(job(i, node_packing_count=4) for i in (1, 3, 4)), more=True))
    ship.step(after=0.1)
    ship.step(Delivered(), Ended(3, DONE))
    assert ship.reports() == [(3, JobState.RUN_DONE)]
    ship.step(Arrived((job(2, node_packing_count=1),), more=True), Ended(4, DONE))
    assert ship.started() + ship.reports() == []
    return ship


def test_what_comes_again_is_started_once() -> None:
    ship = a_lease_everywhere()
    ship.step(Arrived(tuple(job(i, node_packing_count=1 if i == 2 else 4) for i in (1, 2, 3, 4, 5)), again=True))
    assert ship.started() == [5]
    ship.step(Ended(1, DONE), Ended(5, DONE))
    assert ship.started() == [2]
    ship.step(Ended(2, DONE))
    assert ship.started() == []


def test_a_job_that_may_have_been_lost_with_its_node_is_known_too() -> None:
    ship = Ship(cores=4)
    ship.step()
    ship.step(Arrived((job(1),), more=True))
    ship.step(after=0.1)
    ship.step(Delivered())
    terminated = Outcome(JobState.RUN_ERROR, Result(ok=False, error="x", reason="exit", return_code=-15), {})
    ship.step(Ended(1, terminated))
    ship.step(Arrived((job(1),), again=True))
    assert ship.started() == []


def test_another_lease_of_a_known_job_is_no_repetition() -> None:
    ship = a_lease_everywhere()
    ship.step(Arrived((job(4, node_packing_count=4, epoch=2),), again=True))
    assert ship.started() == [4]


def test_what_was_confirmed_while_the_repeated_answer_was_on_its_way_is_not_started_again() -> None:
    ship = Ship(cores=4)
    ship.step()
    ship.step(Arrived((job(1),), more=True))
    ship.step(Ended(1, DONE), after=1)
    ship.step(Delivered())
    ship.step(Arrived((job(1),), again=True))
    assert ship.started() == []
