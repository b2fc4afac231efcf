"""Any sequence of calls, crashes and repetitions: no illegal state, no lost job, no lost or doubled result.

The model knows what each launcher believes; the service must agree with it or refuse it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from balsam_exec.model.errors import Conflict, IllegalTransition, InvalidRequest, NotFound, StaleLease
from balsam_exec.model.jobs import Result
from balsam_exec.model.states import FAILURES, RUNNABLE, TERMINAL, TRANSITIONS, WAITING, Actor
from balsam_exec.server.service import feed
from balsam_exec.server.store.schema import RUNNABLE_UNLEASED
from tests.server.machines import TIMEOUT, run_machine
from tests.server.world import S, World
from tests.support.postgres import PostgresServer

ENDS = [S.RUN_DONE, S.RUN_ERROR, S.RUN_TIMEOUT]
TTL = 100.0


class Campaign(RuleBasedStateMachine):
    """Users, sites, launchers and the reaper, in any order."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.world.empty()
        self.jobs: list[int] = []
        self.cursor = int(self.world.feed(None)["cursor"])
        self.told: dict[int, str] = {}
        #: session -> its leases as its launcher believes; a session stays here after its end.
        self.held: dict[int, dict[int, dict[str, Any]]] = {}
        self.ended: set[int] = set()
        self.heard: dict[int, int] = {}
        self.sent: list[tuple[int, list[Any]]] = []
        #: Leases that their own launchers hold anew, under a later epoch.
        self.outlived: list[tuple[int, dict[str, Any]]] = []
        self.runs = 0
        #: Jobs whose launchers are to kill them.
        self.doomed: set[int] = set()

    @initialize()
    def begin(self) -> None:
        """Two launchers, some jobs, and a child of one of them: else most examples are about nothing."""
        self.open()
        self.open()
        self.create(3, False, [])
        self.create(1, False, [0])

    # --- the user

    @rule(
        count=st.integers(1, 4),
        hooked=st.booleans(),
        parents=st.lists(st.integers(0, 50), max_size=3),
        terms=st.sampled_from(["fail", "fail", "run", "hold"]),
    )
    def create(self, count: int, hooked: bool, parents: list[int], terms: str = "fail") -> None:
        app = self.world.hooked if hooked else self.world.python
        ids = [self.jobs[index % len(self.jobs)] for index in parents] if self.jobs else []
        spec = self.world.spec(app, parent_ids=ids, on_parent_failure=terms, input_files=["*"] if hooked else [])
        self.jobs += self.world.create(*[spec] * count)

    @precondition(lambda self: self.jobs)
    @rule(index=st.integers(0, 100), parents=st.lists(st.integers(0, 50), max_size=3))
    def other_parents(self, index: int, parents: list[int]) -> None:
        """Circles are refused (test_families.py says when), and jobs that run, or have and are not over."""
        job_id, ids = self.jobs[index % len(self.jobs)], [self.jobs[index % len(self.jobs)] for index in parents]
        free = job_id not in self.world.held() and S(self.world.state(job_id)) in WAITING | TERMINAL
        with suppress(InvalidRequest) if free else pytest.raises(Conflict):
            self.world.patch(job_id, parent_ids=ids)

    @precondition(lambda self: self.jobs)
    @rule(index=st.integers(0, 100), wanted=st.sampled_from(sorted(S)))
    def set_state(self, index: int, wanted: S) -> None:
        """By a user or the agent: legal and done, or refused and unchanged."""
        job_id = self.jobs[index % len(self.jobs)]
        before = S(self.world.state(job_id))
        if wanted is S.USER_KILLED and job_id in self.world.held():
            self.world.patch(job_id, state=wanted)
            self.doomed.add(job_id)
            return
        legal = before is wanted or {Actor.USER, Actor.SITE} & TRANSITIONS.get((before, wanted), frozenset())
        try:
            self.world.patch(job_id, state=wanted)
        except IllegalTransition:
            assert not legal
            assert self.world.state(job_id) == before
        else:
            assert legal

    @precondition(lambda self: self.jobs)
    @rule(indices=st.lists(st.integers(0, 100), max_size=4))
    def cancel(self, indices: list[int]) -> None:
        for job_id in self.world.cancel(*(self.jobs[index % len(self.jobs)] for index in indices)):
            assert self.world.state(job_id) == S.USER_KILLED

    @precondition(lambda self: self.jobs)
    @rule(indices=st.lists(st.integers(0, 100), min_size=1, max_size=4), of_held=st.booleans())
    def kill(self, indices: list[int], of_held: bool) -> None:
        held = self.world.held()
        some = sorted(held) if of_held and held else self.jobs
        ids = {some[index % len(some)] for index in indices}
        before = {job_id: S(self.world.state(job_id)) for job_id in ids}
        answer = self.world.kill(*ids)
        assert set(answer["ordered"]) == ids & held.keys()
        assert set(answer["over"]) == {i for i, state in before.items() if state in TERMINAL - {S.USER_KILLED}}
        assert set(answer["killed"]) == ids - set(answer["ordered"]) - set(answer["over"])
        assert all(self.world.state(job_id) == S.USER_KILLED for job_id in answer["killed"])
        self.doomed.update(answer["ordered"])

    # --- launchers

    @precondition(lambda self: len(self.held) - len(self.ended) < 3)
    @rule()
    def open(self) -> None:
        session = self.world.open(ttl_sec=TTL)
        self.held[session] = {}
        self.heard[session] = self.world.now

    def pick(self, index: int) -> int:
        """A session; seldom one that has ended."""
        living = sorted(set(self.held) - self.ended)
        return living[index % len(living)] if living and index else max(self.held)

    @contextmanager
    def a_call_of(self, session: int) -> Iterator[None]:
        """It is answered, and extends the session, unless that has ended or not been heard of for too long."""
        expired = self.world.now - self.heard[session] >= TTL * 1_000_000
        try:
            yield
        except NotFound:
            assert expired or session in self.ended
        else:
            assert not expired
            assert session not in self.ended
            self.heard[session] = self.world.now

    @precondition(lambda self: self.held)
    @rule(index=st.integers(0, 5), count=st.integers(1, 5), lost=st.booleans())
    def acquire(self, index: int, count: int, lost: bool) -> None:
        session = self.pick(index)
        key = f"{session}-{len(self.held[session])}-{self.world.now}"
        with self.a_call_of(session):
            got = self.world.acquire(session, count, key=key)
            if lost:  # the answer did not arrive, and the launcher asks again
                assert self.world.acquire(session, count, key=key) == got
            for job in got:
                others = [
                    s for s, leases in self.held.items() if leases.get(job["id"], {}).get("epoch") == job["epoch"]
                ]
                assert not others, "one lease was given twice"
                self.lease(session, job)
            self.world.later(0.001)

    def lease(self, session: int, job: dict[str, Any]) -> None:
        if job["id"] in self.held[session]:
            self.outlived.append((session, self.held[session][job["id"]]))
        self.held[session][job["id"]] = {**job, "sent": None}

    @precondition(lambda self: self.held)
    @rule(index=st.integers(0, 5))
    def lose_and_regain(self, index: int) -> None:
        """The owner takes jobs away and sets them free, and the same launcher gets them again."""
        session = self.pick(index)
        with self.a_call_of(session):
            for _ in range(2):
                for job in self.world.acquire(session):
                    self.lease(session, job)
                for job_id in self.held[session]:
                    if self.world.state(job_id) in RUNNABLE:
                        self.world.patch(job_id, state=S.FAILED)
                        self.world.patch(job_id, state=S.RESTART_READY)
            for job in self.world.acquire(session):
                self.lease(session, job)

    @precondition(lambda self: self.outlived)
    @rule(index=st.integers(0, 50), state=st.sampled_from([S.RUNNING, None]))
    def report_under_an_old_epoch(self, index: int, state: S | None) -> None:
        session, job = self.outlived[index % len(self.outlived)]
        with self.a_call_of(session), pytest.raises(StaleLease):
            self.world.report(session, self.world.a_report(job, state))

    @precondition(lambda self: self.held)
    @rule(index=st.integers(0, 5))
    def run_all(self, index: int) -> None:
        session = self.pick(index)
        with self.a_call_of(session):
            for job in self.world.acquire(session):
                self.world.run(session, job)

    @precondition(lambda self: self.jobs)
    @rule(index=st.integers(0, 100))
    def restart(self, index: int) -> None:
        """A user restarts what has ended."""
        ended = [job_id for job_id in self.jobs if self.world.state(job_id) in TERMINAL]
        if ended:
            self.world.patch(ended[index % len(ended)], state=S.RESTART_READY)

    @precondition(lambda self: self.held)
    @rule(index=st.integers(0, 5), ends=st.lists(st.sampled_from([*ENDS, S.USER_KILLED, S.RUNNING, None]), max_size=3))
    def condemn(self, index: int, ends: list[S | None]) -> None:
        """The owner kills what a launcher has just got, some of which starts or ends all the same."""
        session, jobs = self.pick(index), []
        with self.a_call_of(session):
            jobs = self.world.acquire(session)
            for job in jobs:
                self.lease(session, job)
        if not jobs:
            return
        assert self.world.kill(*(job["id"] for job in jobs))["ordered"] == sorted(job["id"] for job in jobs)
        self.doomed.update(job["id"] for job in jobs)
        for job, end in zip(jobs, ends, strict=False):
            self.tell(session, job["id"], False, *([S.RUNNING, end] if end in ENDS else [end]))
            state = S(self.world.state(job["id"]))
            assert state in TERMINAL or end is S.RUNNING is state

    @precondition(lambda self: self.doomed)
    @rule(index=st.integers(0, 5), lost=st.booleans())
    def obey(self, index: int, lost: bool) -> None:
        """A launcher hears its orders, which it hears again until it has told the ends."""
        session = self.pick(index)
        with self.a_call_of(session):
            orders = self.world.orders(session)
            assert self.world.orders(session) == orders
            for job_id, epoch in orders.items():
                assert self.held[session][job_id]["epoch"] == epoch
                self.tell(session, job_id, lost, S.USER_KILLED)
                assert self.world.state(job_id) == S.USER_KILLED

    @precondition(lambda self: any(self.held.values()))
    @rule(index=st.integers(0, 50), lost=st.booleans())
    def release(self, index: int, lost: bool) -> None:
        self.tell(*self.pick_lease(index), lost, None)

    @precondition(lambda self: any(self.held.values()))
    @rule(index=st.integers(0, 50), lost=st.booleans(), end=st.sampled_from(ENDS), both=st.booleans())
    def go_on(self, index: int, lost: bool, end: S, both: bool) -> None:
        """Start a job, end one that runs, or both in one report."""
        session, job_id = self.pick_lease(index)
        running = self.held[session][job_id]["sent"] is S.RUNNING
        self.tell(session, job_id, lost, *([end] if running else [S.RUNNING, end] if both else [S.RUNNING]))

    def pick_lease(self, index: int) -> tuple[int, int]:
        leases = sorted((session, job_id) for session, jobs in self.held.items() for job_id in jobs)
        return leases[-1 - index % len(leases)]  # the later ones first, whose sessions live

    def tell(self, session: int, job_id: int, lost: bool, *states: S | None) -> None:
        """A launcher that keeps to its part reports on one of its jobs; perhaps twice, where an answer was lost."""
        job = self.held[session][job_id]
        if states[0] is None and job["sent"] is S.RUNNING:  # only what was not started is given back
            return
        self.runs += 1
        value = str(self.runs).encode()
        reports = [
            self.world.a_report(
                job,
                state,
                result=Result(ok=state is S.RUN_DONE, value=value) if state in (S.RUN_DONE, S.RUN_ERROR) else None,
            )
            for state in states
        ]
        with self.a_call_of(session):
            try:
                self.world.report(session, *reports)
                if lost:
                    self.world.report(session, *reports)
            except StaleLease as stale:
                assert stale.detail["job_ids"] == [job_id]  # noqa: PT017
                del self.held[session][job_id]
            else:
                self.sent.append((session, reports))
                job["sent"] = states[-1]
                if states[-1] is not S.RUNNING:
                    del self.held[session][job_id]

    @precondition(lambda self: self.sent)
    @rule(index=st.integers(0, 50))
    def repeat_an_old_report(self, index: int) -> None:
        """As a network may: it changes nothing, whatever has happened since."""
        session, reports = self.sent[index % len(self.sent)]
        before = len(self.world.hops(reports[0].job_id))
        with self.a_call_of(session):
            with suppress(StaleLease):
                self.world.report(session, *reports)
            assert len(self.world.hops(reports[0].job_id)) == before

    @precondition(lambda self: self.held)
    @rule(index=st.integers(0, 5))
    def close(self, index: int) -> None:
        session = self.pick(index)
        if session in self.ended:
            return
        self.world.close_session(session)
        self.ended.add(session)

    @rule(seconds=st.sampled_from([1, 60, 150]))
    def pass_time(self, seconds: int) -> None:
        """Launchers crash, or are slow; the reaper comes."""
        self.world.later(seconds)
        self.world.reap()
        gone = {s for s, heard in self.heard.items() if self.world.now - heard >= TTL * 1_000_000}
        self.ended |= gone

    # --- what is always true

    @invariant()
    def the_tables_agree(self) -> None:
        self.world.check_invariants()

    @invariant()
    def the_feed_tells_every_hop_once_and_in_order(self) -> None:
        while True:
            page = self.world.feed(self.cursor, kind=["job"])
            for event in page["events"]:
                job_id, source, target = event["subject_id"], event["from_state"], event["to_state"]
                assert self.told.get(job_id, S.CREATED) == source, "a hop was skipped or repeated"
                assert (S(source), S(target)) in TRANSITIONS
                self.told[job_id] = target
                if S(target) in TERMINAL:
                    self.doomed.discard(job_id)
            self.cursor = int(page["cursor"])
            if not page["events"]:
                break
        assert self.told == {job_id: self.world.state(job_id) for job_id in self.jobs}
        # Whoever is to be killed stays with its launcher until it has ended.
        assert {job_id for job_id, to_kill in self.world.held().items() if to_kill} == self.doomed

    def teardown(self) -> None:
        """No job is lost: once every launcher is gone, others finish all that can still run."""
        self.world.later(2 * TTL)
        self.world.reap()
        for _ in range(100):
            waiting = [job_id for job_id in self.jobs if S(self.world.state(job_id)) not in TERMINAL]
            if not self._help(waiting):
                break
        assert not [job_id for job_id in waiting if not self._is_held_for_a_failure(job_id)]
        self.the_feed_tells_every_hop_once_and_in_order()
        ended = self.world.read(feed.results, self.world.owner, self.jobs)
        assert len(ended) == len(self.jobs) - len(waiting)

    def _help(self, waiting: list[int]) -> bool:
        """Do what site and launcher have to do. Whether there was anything."""
        hooks = {
            S.READY: S.STAGED_IN,
            S.STAGED_IN: S.PREPROCESSED,
            S.RUN_DONE: S.POSTPROCESSED,
            S.RUN_ERROR: S.RESTART_READY,
            S.RUN_TIMEOUT: S.RESTART_READY,
        }
        moved = False
        for job_id in waiting:
            state = S(self.world.state(job_id))
            if state in hooks:
                self.world.patch(job_id, state=hooks[state])
                moved = True
        session = self.world.open()
        for job in self.world.acquire(session):
            self.world.run(session, job)
            moved = True
        self.world.close_session(session)
        return moved

    def _is_held_for_a_failure(self, job_id: int) -> bool:
        """By its own terms, or by those of a job above it."""
        job = self.world.job(job_id)
        parents = {parent: S(self.world.state(parent)) for parent in job["parent_ids"]}
        held = job["on_parent_failure"] == "hold" and bool(FAILURES & set(parents.values()))
        above = [parent for parent, state in parents.items() if state not in TERMINAL]
        return job["state"] == S.AWAITING_PARENTS and (held or any(map(self._is_held_for_a_failure, above)))


@pytest.mark.timeout(TIMEOUT)
def test_any_campaign_on_sqlite(tmp_path: Path) -> None:
    run_machine(Campaign, World(f"sqlite:///{tmp_path / 'balsam.db'}"), examples=20, steps=40)


@pytest.mark.timeout(TIMEOUT)
def test_any_campaign_on_postgresql(postgres: PostgresServer) -> None:
    with postgres.database() as url:
        run_machine(Campaign, World(url), examples=6, steps=40)


def test_runnable_states_have_an_index() -> None:
    assert all(f"'{state}'" in RUNNABLE_UNLEASED for state in RUNNABLE)
