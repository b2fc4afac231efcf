"""Any interleaving of what users, the scheduler and an agent that may die do to allocations that wait: what is recorded
is what the scheduler has, or what it is yet to be told."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from balsam_exec.client.service import Service
from balsam_exec.model.base import Page
from balsam_exec.model.batch_jobs import AllocationRequest, BatchJobPatch, BatchJobRecord, BatchJobSpec
from balsam_exec.model.errors import Conflict, InvalidRequest
from balsam_exec.model.queries import BatchJobQuery
from balsam_exec.model.states import BATCH_JOB_ENDED, BatchJobState
from balsam_exec.platform.schedulers import Scheduler, Status, SubmitSpec
from balsam_exec.platform.schedulers.base import ModifyRefused, SchedulerState
from balsam_exec.platform.settings import SiteDirectory
from balsam_exec.server.service import batch_jobs
from balsam_exec.site.allocations import Allocations
from tests.server.machines import TIMEOUT, run_machine
from tests.server.world import World

B = BatchJobState
QUEUED, RUNNING, FINISHED = SchedulerState.QUEUED, SchedulerState.RUNNING, SchedulerState.FINISHED
#: So many nodes the scheduler has not.
TOO_MANY = 3


class Killed(Exception):
    """The agent is."""


@dataclass
class Held:
    """A job of the scheduler."""

    request: AllocationRequest
    state: SchedulerState = QUEUED


class OneScheduler(Scheduler):
    """Between two of the agent's steps `meanwhile` is called."""

    poll_sec = 1.0

    def __init__(self) -> None:
        self.jobs: dict[str, Held] = {}  #: by id, which is the key
        self.told: dict[str, list[AllocationRequest]] = {}
        self.unsure: set[str] = set()  #: somebody died over a change: nobody knows whether it heard of that
        self.meanwhile: Callable[[], None] = lambda: None

    def submit(self, script: Path, spec: SubmitSpec) -> str:
        self.meanwhile()
        if spec.key not in self.jobs:
            self.jobs[spec.key] = Held(spec.request)
            self.told[spec.key] = [spec.request]
        self.meanwhile()
        return spec.key

    def find(self, key: str) -> str | None:
        return key if key in self.jobs else None

    def asked(self, key: str) -> list[AllocationRequest]:
        return self.told.get(key, [])

    def statuses(self, ids: Iterable[str]) -> dict[str, Status]:
        self.meanwhile()
        return {name: Status(self.jobs[name].state, info="x") for name in ids}

    def modify(self, scheduler_id: str, before: SubmitSpec, after: SubmitSpec) -> None:
        tried, held = self.told[scheduler_id], self.jobs[scheduler_id]
        self.told[scheduler_id] = [*tried, after.request]
        self.unsure.add(scheduler_id)
        self.meanwhile()
        if held.state is not QUEUED or after.num_nodes == TOO_MANY:
            self.told[scheduler_id] = tried if before.request.changes(after.request) else [before.request]
            if not any(before.request.changes(one) for one in tried):
                self.unsure.discard(scheduler_id)
            raise ModifyRefused("no")
        self.unsure.discard(scheduler_id)
        assert not all(held.request.changes(one) for one in (before.request, *tried))
        held.request = after.request
        self.told[scheduler_id] = [after.request]
        self.meanwhile()

    def cancel(self, scheduler_id: str) -> None:
        self.jobs[scheduler_id].state = FINISHED

    def move(self, source: SchedulerState, target: SchedulerState) -> None:
        for held in self.jobs.values():
            if held.state is source:
                held.state = target
                return


class OneService:
    """What the agent asks of the service."""

    def __init__(self, machine: Changes) -> None:
        self._machine = machine

    def batch_jobs(self, query: Any = None, **lookups: Any) -> Page[BatchJobRecord]:
        return self._machine.records(**lookups)

    def patch_batch_job(self, batch_job_id: int, patch: BatchJobPatch) -> BatchJobRecord:
        self._machine.meanwhile()
        record = self._machine.patch(batch_job_id, patch)
        self._machine.meanwhile()
        return record


class Changes(RuleBasedStateMachine):
    """One site, its scheduler, its agent and its users."""

    world: World
    site: SiteDirectory

    def __init__(self) -> None:
        super().__init__()
        self.world.empty()
        self.scheduler = OneScheduler()
        self.scheduler.meanwhile = self.meanwhile
        self.coming: list[str] = []
        self.start_agent()

    def start_agent(self) -> None:
        service = cast(Service, OneService(self))
        self.agent = Allocations(service, self.world.site, self.site, self.site.settings())
        self.agent.close()
        self.agent._scheduler = self.scheduler

    def records(self, **lookups: Any) -> Page[BatchJobRecord]:
        query = BatchJobQuery.model_validate(lookups)
        found = self.world.read(batch_jobs.batch_jobs, self.world.owner, query)
        return Page[BatchJobRecord].model_validate(found)

    def patch(self, batch_job_id: int, patch: BatchJobPatch) -> BatchJobRecord:
        changed = self.world.write(batch_jobs.patch_batch_job, self.world.owner, batch_job_id, patch)
        return BatchJobRecord.model_validate(changed)

    def meanwhile(self) -> None:
        """What happens next to the others while the agent works."""
        if self.coming:
            self.happen(self.coming.pop(0))

    def happen(self, what: str) -> None:
        match what.split():
            case ["die"]:
                raise Killed
            case ["start"]:
                self.scheduler.move(QUEUED, RUNNING)
            case ["end"]:
                self.scheduler.move(RUNNING, FINISHED)
            case ["cancel"]:
                self.change(state=B.PENDING_DELETION)
            case ["nodes", count, *parts]:
                partitions = [{"num_nodes": int(part)} for part in parts]
                self.change(num_nodes=int(count), **({"partitions": partitions} if partitions else {}))

    def change(self, **fields: Any) -> None:
        """As its user does to the last one."""
        found = self.records(ordering="-id", limit=1).results
        for record in found:
            with suppress(Conflict, InvalidRequest):  # it is too late, or the partitions do not fit
                self.patch(record.id, BatchJobPatch.model_validate(fields))

    @initialize()
    def begin(self) -> None:
        self.request()

    @rule()
    def request(self) -> None:
        self.world.later(1)
        spec = BatchJobSpec(site_id=self.world.site, num_nodes=1, wall_time_min=1)
        self.world.write(batch_jobs.create_batch_job, self.world.owner, spec)

    EVENTS = st.sampled_from(["", "", "start", "end", "nodes 1", "nodes 2", "nodes 3", "nodes 2 2", "nodes 3 3", "die"])

    @rule(what=st.sampled_from(["start", "end", "cancel", "nodes 1", "nodes 2", "nodes 3", "nodes 2 2", "nodes 3 3"]))
    def happens(self, what: str) -> None:
        self.happen(what)

    @rule(coming=st.lists(EVENTS, max_size=8))
    def look(self, coming: list[str]) -> None:
        self.coming = coming
        try:
            self.agent._reconcile()
        except Killed:
            self.start_agent()
        self.coming = []

    @rule(steps=st.integers(0, 6))
    def die_early(self, steps: int) -> None:
        self.look([""] * steps + ["die"])

    @invariant()
    def what_is_recorded_can_be_read_and_what_runs_is_as_it_is(self) -> None:
        for record in self.records(limit=1000).results:  # it would raise where partitions do not fit
            held = self.scheduler.jobs.get(record.scheduler_id or "")
            known = held is not None and record.scheduler_id not in self.scheduler.unsure
            if known and record.state in (B.RUNNING, B.FINISHED):
                assert held is not None
                assert not held.request.changes(record), record

    def teardown(self) -> None:
        """Left alone, all of it settles."""
        for _ in range(6):
            self.agent._reconcile()
        for record in self.records(limit=1000).results:
            if record.state in BATCH_JOB_ENDED:
                continue
            held = self.scheduler.jobs[record.scheduler_id or ""]
            assert record.state == held.state.value
            if record.scheduler_id in self.scheduler.unsure:
                continue  # it started then
            assert record.submitted is not None
            assert not held.request.changes(record), record
            assert not held.request.changes(record.submitted), record


@pytest.mark.timeout(TIMEOUT)
def test_any_changes(tmp_path: Path) -> None:
    Changes.site = SiteDirectory(tmp_path / "site")
    Changes.site.create("here")
    run_machine(Changes, World(f"sqlite:///{tmp_path / 'balsam.db'}"), examples=40, steps=20)
