"""The allocation of an executor: asked for again while there is work, given up when that is futile."""

from __future__ import annotations

import pytest

from balsam_exec.executors.allocation import Allocation, AllocationFailed
from balsam_exec.model.base import now
from balsam_exec.model.batch_jobs import BatchJobPatch, BatchJobRecord, BatchJobSpec
from balsam_exec.model.errors import Conflict, NotAllowed
from balsam_exec.model.events import Feed, FeedEvent, Kind
from balsam_exec.model.queries import FeedQuery
from balsam_exec.model.states import BatchJobState

SPEC = BatchJobSpec(site_id=1, num_nodes=1, wall_time_min=10)


class Site:
    """Batch jobs that stand as the test says, and an executor with work."""

    def __init__(self) -> None:
        self.states: list[BatchJobState] = []
        self.unresolved, self.started, self.full = 1, 0, False
        self.given_up: list[BaseException] = []
        self.allocation = Allocation(self, SPEC, lambda: (self.unresolved, self.started), self.given_up.append)

    def create_batch_job(self, spec: BatchJobSpec) -> BatchJobRecord:
        if self.full:
            raise NotAllowed("its queue is full")
        self.states.append(BatchJobState.PENDING_SUBMISSION)
        return self.batch_job(len(self.states))

    def batch_job(self, batch_job_id: int) -> BatchJobRecord:
        state = self.states[batch_job_id - 1]
        info = {"error": "exit code 7"}
        return BatchJobRecord(id=batch_job_id, state=state, status_info=info, created=now(), **SPEC.model_dump())

    def patch_batch_job(self, batch_job_id: int, patch: BatchJobPatch) -> BatchJobRecord:
        if self.states[batch_job_id - 1] is BatchJobState.FINISHED:
            raise Conflict("it has ended")
        assert patch.state is not None
        self.states[batch_job_id - 1] = patch.state
        return self.batch_job(batch_job_id)

    def feed(self, query: FeedQuery) -> Feed:
        if query.cursor is not None:  # while somebody waits, the allocation moves on
            self.states[-1] = BatchJobState.RUNNING
        return Feed(cursor="1", events=[])

    def end(self, state: BatchJobState = BatchJobState.FINISHED) -> None:
        self.states[-1] = state
        self.allocation.on_event(
            FeedEvent(
                id=1,
                kind=Kind.BATCH_JOB,
                subject_id=len(self.states),
                from_state="running",
                to_state=state,
                timestamp=now(),
            )
        )


@pytest.fixture
def site() -> Site:
    site = Site()
    site.allocation.before_send()
    return site


def test_one_is_enough(site: Site) -> None:
    site.allocation.before_send()
    assert len(site.states) == 1


def test_another_while_there_is_work(site: Site) -> None:
    site.started = 5
    site.end()
    assert len(site.states) == 2
    assert site.given_up == []


def test_none_without_work_until_jobs_are_sent(site: Site) -> None:
    site.unresolved = 0
    site.end()
    assert len(site.states) == 1
    site.allocation.before_send()
    assert len(site.states) == 2


def test_futile_ones_are_given_up_and_say_why(site: Site) -> None:
    site.end()
    site.end(BatchJobState.SUBMIT_FAILED)
    [error] = site.given_up
    assert isinstance(error, AllocationFailed)
    assert "exit code 7" in str(error)
    assert len(site.states) == 2


def test_one_that_is_not_allowed_is_told(site: Site) -> None:
    site.started, site.full = 1, True
    site.end()
    assert [str(error) for error in site.given_up] == ["its queue is full"]
    with pytest.raises(NotAllowed):
        site.allocation.before_send()


def test_progress_forgives(site: Site) -> None:
    site.end()
    site.started = 1
    site.end()
    site.end()
    assert site.given_up == []
    assert len(site.states) == 4


def test_somebody_elses_allocation_is_none_of_ours(site: Site) -> None:
    site.states.append(BatchJobState.RUNNING)
    site.end()
    assert len(site.states) == 2


def test_close_gives_it_back_once(site: Site) -> None:
    site.allocation.close()
    assert site.states == [BatchJobState.PENDING_DELETION]
    site.allocation.before_send()
    site.allocation.close()
    assert len(site.states) == 1


def test_close_after_its_end(site: Site) -> None:
    site.states[0] = BatchJobState.FINISHED
    site.allocation.close()


def test_waiting_for_it_to_run(site: Site) -> None:
    site.allocation.wait_running(10)
    assert site.allocation.running
    site.end()
    assert not site.allocation.running


def test_waiting_for_one_that_ends(site: Site) -> None:
    site.states[0] = BatchJobState.SUBMIT_FAILED
    with pytest.raises(AllocationFailed, match="submit_failed"):
        site.allocation.wait_running(10)
