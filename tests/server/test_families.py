"""Any sequence of ends, restarts, deletions and new parents: every job stands where its parents have it be.

The model is a function of how jobs ended by themselves and of who depends on whom; it remembers nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from balsam_exec.model.errors import Conflict, InvalidRequest
from balsam_exec.model.jobs import JobBulkPatch, JobPatch
from balsam_exec.model.queries import JobQuery
from balsam_exec.model.states import FAILURES, RUNNABLE, TERMINAL, OnParentFailure
from balsam_exec.server.service import update
from tests.server.machines import TIMEOUT, run_machine
from tests.server.world import S, World

Some = st.lists(st.integers(0, 50), min_size=1, max_size=4)
Terms = st.sampled_from(sorted(OnParentFailure))


@dataclass
class Member:
    terms: str
    parents: set[int] = field(default_factory=set)
    end: S | None = None  #: by itself


class Families(RuleBasedStateMachine):
    world: World

    def __init__(self) -> None:
        super().__init__()
        self.world.empty()
        self.members: dict[int, Member] = {}
        self.session = self.world.open()

    # --- the model

    def expected(self) -> dict[int, S | None]:
        """How each job has ended, or AWAITING_PARENTS; None: it can run."""
        found: dict[int, S | None] = {}

        def state(job_id: int) -> S | None:
            if job_id not in found:
                found[job_id] = end(self.members[job_id])
            return found[job_id]

        def end(member: Member) -> S | None:
            states = [state(parent) for parent in member.parents]
            if member.end is not None:
                return member.end
            if member.terms == "fail" and FAILURES & set(states):
                return S.FAILED
            done = TERMINAL if member.terms == "run" else {S.JOB_FINISHED}
            return None if done.issuperset(states) else S.AWAITING_PARENTS

        for job_id in self.members:
            state(job_id)
        return found

    def above(self, job_id: int) -> set[int]:
        found: set[int] = set()
        left = set(self.members[job_id].parents)
        while left:
            found |= left
            left = {parent for one in left for parent in self.members[one].parents} - found
        return found

    def some(self, indices: list[int]) -> set[int]:
        ids = sorted(self.members)
        return {ids[index % len(ids)] for index in indices}

    # --- what may happen

    @rule(indices=st.lists(st.integers(0, 50), max_size=4), terms=Terms, count=st.integers(1, 3))
    def create(self, indices: list[int], terms: str, count: int) -> None:
        parents = self.some(indices) if self.members else set()
        spec = self.world.spec(parent_ids=sorted(parents), on_parent_failure=terms)
        for job in self.world.created(*[spec] * count):
            self.members[job.id] = Member(terms, set(parents))
            assert job.state == self.world.state(job.id)

    @precondition(lambda self: self.members)
    @rule(count=st.integers(1, 5), ends=st.lists(st.sampled_from([S.RUN_DONE, S.RUN_ERROR, None]), max_size=5))
    def run(self, count: int, ends: list[S | None]) -> None:
        """A launcher takes some, starts and ends these, all in one report, and gives the others back."""
        jobs = self.world.acquire(self.session, count)
        expected = self.expected()
        reports = []
        for job, end in zip(jobs, [*ends, *[S.RUN_DONE] * count], strict=False):
            assert expected[job["id"]] is None
            states = [S.RUNNING, end] if end else [None]
            reports += [self.world.a_report(job, state) for state in states]
            if end is not None:
                self.members[job["id"]].end = S.JOB_FINISHED if end is S.RUN_DONE else S.FAILED
        self.world.report(self.session, *reports)

    @precondition(lambda self: self.members)
    @rule(indices=Some)
    def kill(self, indices: list[int]) -> None:
        ids = self.some(indices)
        expected = self.expected()
        self.world.kill(*ids)
        for job_id in ids:
            if expected[job_id] in (None, S.AWAITING_PARENTS):
                self.members[job_id].end = S.USER_KILLED

    @precondition(lambda self: self.members)
    @rule(indices=Some)
    def restart(self, indices: list[int]) -> None:
        expected = self.expected()
        ids = [job_id for job_id in sorted(self.some(indices)) if expected[job_id] in TERMINAL]
        patches = [JobBulkPatch(id=job_id, state=S.RESTART_READY) for job_id in ids]
        self.world.write(update.patch_jobs, self.world.owner, patches)
        for job_id in ids:
            self.members[job_id].end = None

    @precondition(lambda self: self.members)
    @rule(index=st.integers(0, 50), indices=st.lists(st.integers(0, 50), max_size=4))
    def other_parents(self, index: int, indices: list[int]) -> None:
        [job_id], parents = self.some([index]), self.some(indices)
        circle = any(parent == job_id or job_id in self.above(parent) for parent in parents)
        try:
            self.world.patch(job_id, parent_ids=sorted(parents))
        except InvalidRequest:
            assert circle
        else:
            assert not circle
            self.members[job_id].parents = parents

    @precondition(lambda self: self.members)
    @rule(indices=Some, terms=Terms)
    def other_terms(self, indices: list[int], terms: str) -> None:
        ids = self.some(indices)
        query = JobQuery(id=sorted(ids))
        self.world.write(update.patch_matching, self.world.owner, query, JobPatch(on_parent_failure=terms))
        for job_id in ids:
            self.members[job_id].terms = terms

    @precondition(lambda self: len(self.members) > 3)
    @rule(indices=Some)
    def delete(self, indices: list[int]) -> None:
        gone = self.some(indices)
        expected = self.expected()
        unfinished = {job_id for job_id in gone if expected[job_id] is not S.JOB_FINISHED}
        bereft = {
            job_id: one for job_id, one in self.members.items() if one.parents & unfinished and job_id not in gone
        }
        held = {
            job_id
            for job_id, one in bereft.items()
            if one.terms == "hold" and expected[job_id] in (S.AWAITING_PARENTS,)
        }
        try:
            self.world.write(update.delete_matching, self.world.owner, JobQuery(id=sorted(gone)))
        except Conflict:
            assert held
            return
        assert not held
        for job_id, one in bereft.items():
            if one.terms == "fail" and expected[job_id] in (S.AWAITING_PARENTS, S.FAILED):
                one.end = S.FAILED  # for good: what it waited for will not come
        for job_id in gone:
            del self.members[job_id]
        for one in self.members.values():
            one.parents -= gone

    # --- what is always true

    @invariant()
    def all_stand_where_they_belong(self) -> None:
        for job_id, state in self.expected().items():
            found = S(self.world.state(job_id))
            assert found in RUNNABLE if state is None else found is state, (job_id, found, state)

    @invariant()
    def the_tables_agree(self) -> None:
        self.world.check_invariants()

    @invariant()
    def whoever_is_to_blame_has_failed_by_itself(self) -> None:
        for job_id in self.members:
            root = self.world.job(job_id)["root_cause"]
            assert root is None or self.members[job_id].end is None

    def teardown(self) -> None:
        """Once all that failed is restarted, and stays good, everything finishes."""
        ended = [job_id for job_id, state in self.expected().items() if state in FAILURES]
        patches = [JobBulkPatch(id=job_id, state=S.RESTART_READY) for job_id in ended]
        self.world.write(update.patch_jobs, self.world.owner, patches)
        while jobs := self.world.acquire(self.session):
            for job in jobs:
                self.world.run(self.session, job)
        assert self.world.count() == self.world.count(state=[S.JOB_FINISHED])
        self.world.check_invariants()


@pytest.mark.timeout(TIMEOUT)
def test_any_family_on_sqlite(tmp_path: Path) -> None:
    run_machine(Families, World(f"sqlite:///{tmp_path / 'balsam.db'}"), examples=20, steps=30)


@pytest.mark.timeout(TIMEOUT)
def test_any_family_on_postgresql(request: pytest.FixtureRequest) -> None:
    with request.getfixturevalue("postgres").database() as url:
        run_machine(Families, World(url), examples=6, steps=30)
