"""Blocks: batch jobs in Parsl's words, and what the provider asks of the service."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from parsl.jobs.states import JobState

from balsam_exec.client.service import Service
from balsam_exec.executors.parsl.blocks import BatchJobProvider, status_of, to_bring_back
from balsam_exec.model.base import Page, now
from balsam_exec.model.batch_jobs import BatchJobPatch, BatchJobRecord, BatchJobSpec
from balsam_exec.model.errors import Conflict, ServiceUnavailable
from balsam_exec.model.states import BatchJobState

SPEC = BatchJobSpec(site_id=1, num_nodes=2, wall_time_min=10, filter_tags={"parsl": "x"})


def record(batch_job_id: int = 1, state: str = "running", minutes: float | None = 1, **info: Any) -> BatchJobRecord:
    """A batch job that ran for so many minutes; None: it never started."""
    start = None if minutes is None else now() - timedelta(minutes=minutes)
    return BatchJobRecord(
        id=batch_job_id,
        state=BatchJobState(state),
        status_info=info,
        created=now(),
        start_time=start,
        end_time=now() if state == "finished" else None,
        **SPEC.model_dump(),
    )


@pytest.mark.parametrize(
    ("batch_job", "state"),
    [
        (record(state="pending_submission", minutes=None), JobState.PENDING),
        (record(state="queued", minutes=None), JobState.PENDING),
        (record(state="running"), JobState.RUNNING),
        (record(state="pending_deletion"), JobState.CANCELLED),
        (record(state="submit_failed", error="no such queue"), JobState.FAILED),
        (record(state="finished", exit_code=0), JobState.COMPLETED),
        (record(state="finished", exit_code=1), JobState.FAILED),
        (record(state="finished", info="it was killed"), JobState.FAILED),
        (record(state="finished", minutes=9.8, exit_code=0), JobState.TIMEOUT),
        (record(state="finished", minutes=10.1, exit_code=143), JobState.TIMEOUT),
        (record(state="finished", exit_code=143, cancelled=True), JobState.CANCELLED),
        (record(state="finished", minutes=None, info="cancelled before it was submitted"), JobState.CANCELLED),
        (None, JobState.CANCELLED),
    ],
)
def test_states(batch_job: BatchJobRecord | None, state: JobState) -> None:
    assert status_of(batch_job).state is state


def test_a_failure_has_the_reason_of_the_site() -> None:
    status = status_of(record(7, state="submit_failed", error="no such queue"))
    assert status.message == "batch job 7 submit_failed: no such queue"
    assert status_of(record(state="finished", exit_code=3)).exit_code == 3


class FakeService:
    """Batch jobs that stand as the test says."""

    def __init__(self) -> None:
        self.jobs: dict[int, BatchJobRecord] = {}
        self.asked: list[list[int]] = []
        self.away = False

    def create_batch_job(self, spec: BatchJobSpec) -> BatchJobRecord:
        assert spec == SPEC
        return self.move(len(self.jobs) + 1, "pending_submission")

    def move(self, batch_job_id: int, state: str, **info: Any) -> BatchJobRecord:
        self.jobs[batch_job_id] = record(batch_job_id, state, **info)
        return self.jobs[batch_job_id]

    def batch_jobs(self, **lookups: Any) -> Page[BatchJobRecord]:
        if self.away:
            raise ServiceUnavailable("away")
        self.asked.append(lookups["id"])
        return Page(results=[self.jobs[number] for number in lookups["id"] if number in self.jobs])

    def patch_batch_job(self, batch_job_id: int, patch: BatchJobPatch) -> BatchJobRecord:
        if self.away:
            raise ServiceUnavailable("away")
        if self.jobs[batch_job_id].state is BatchJobState.FINISHED:
            raise Conflict("it has ended")
        assert patch.state is not None
        return self.move(batch_job_id, patch.state)


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def provider(service: FakeService, tmp_path: Path) -> BatchJobProvider:
    made = BatchJobProvider(init_blocks=1, min_blocks=0, max_blocks=3, nodes_per_block=2, parallelism=0.5)
    made.connect(cast(Service, service), SPEC, tmp_path)
    return made


def states(provider: BatchJobProvider, ids: list[str]) -> list[JobState]:
    return [status.state for status in provider.status(ids)]


def test_what_parsl_reads(provider: BatchJobProvider) -> None:
    given = provider.init_blocks, provider.min_blocks, provider.max_blocks, provider.nodes_per_block
    assert given == (1, 0, 3, 2)
    assert provider.parallelism == 0.5
    assert provider.status_polling_interval > 0
    assert provider.label == "balsam"


def test_all_blocks_in_one_request_and_ended_ones_not_again(provider: BatchJobProvider, service: FakeService) -> None:
    ids = [provider.submit("", 1) for _ in range(3)]
    service.move(1, "running")
    service.move(2, "finished", exit_code=0)
    assert states(provider, ids) == [JobState.RUNNING, JobState.COMPLETED, JobState.PENDING]
    assert states(provider, ids) == [JobState.RUNNING, JobState.COMPLETED, JobState.PENDING]
    assert service.asked == [[1, 2, 3], [1, 3]]


def test_while_the_service_is_away_the_states_are_as_of_before(
    provider: BatchJobProvider, service: FakeService
) -> None:
    block = provider.submit("", 1)
    service.move(1, "running")
    assert states(provider, [block]) == [JobState.RUNNING]
    service.away = True
    assert states(provider, [block]) == [JobState.RUNNING]
    assert provider.cancel([block]) == [False]
    service.away = False
    assert provider.cancel([block]) == [True]
    assert service.jobs[1].state is BatchJobState.PENDING_DELETION


def test_cancelling_what_has_ended_is_fine(provider: BatchJobProvider, service: FakeService) -> None:
    block = provider.submit("", 1)
    service.move(1, "finished", exit_code=0)
    assert provider.cancel([block]) == [True]


def test_a_failed_block_shows_what_its_launcher_said(
    provider: BatchJobProvider, service: FakeService, tmp_path: Path
) -> None:
    block = provider.submit("", 1)
    (tmp_path / "batch-job-1-20260101T000000.log").write_text("no such module\n")
    service.move(1, "finished", exit_code=1)
    [status] = provider.status([block])
    assert status.stderr_summary == "no such module\n"


def test_not_before_the_start() -> None:
    made = BatchJobProvider(init_blocks=1, min_blocks=0, max_blocks=1, nodes_per_block=1, parallelism=1)
    with pytest.raises(RuntimeError, match="not started"):
        made.submit("", 1)


@pytest.mark.parametrize(
    ("tasks", "parallelism", "alive", "idled", "limit", "back"),
    [
        (0, 1, 0, 4, 4, 0),  # no work
        (1, 1, 0, 4, 4, 1),
        (9, 1, 1, 3, 4, 2),
        (99, 1, 1, 3, 4, 3),
        (99, 1, 1, 2, 4, 2),  # no more than have idled
        (99, 1, 3, 3, 4, 1),  # a strategy was faster
        (99, 1, 5, 3, 4, 0),
        (99, 0, 0, 4, 4, 1),
        (8, 0.5, 0, 4, 4, 1),
        (9, 0.5, 0, 4, 4, 2),
        (4, 1, 1, 3, 4, 0),  # the one that lives has room for them
    ],
)
def test_what_idled_comes_back_as_far_as_there_is_work(
    tasks: int, parallelism: float, alive: int, idled: int, limit: int, back: int
) -> None:
    assert to_bring_back(tasks, 4, parallelism, alive=alive, idled=idled, limit=limit) == back
