"""What batch jobs may ask for, and how that changes until they run."""

from __future__ import annotations

from typing import Any

import pytest

from balsam_exec.model.batch_jobs import AllocationRequest, BatchJobPatch, BatchJobRecord, BatchJobSpec
from balsam_exec.model.errors import Conflict, InvalidRequest, NotAllowed
from balsam_exec.model.events import Kind
from balsam_exec.model.queries import EventQuery
from balsam_exec.model.sites import SitePatch
from balsam_exec.model.states import BatchJobState
from balsam_exec.server.service import batch_jobs, feed, sites
from tests.server.world import World

B = BatchJobState


def request(world: World, num_nodes: int = 2, **fields: Any) -> BatchJobRecord:
    spec = BatchJobSpec.model_validate({"site_id": world.site, "num_nodes": num_nodes, "wall_time_min": 30, **fields})
    return BatchJobRecord.model_validate(world.write(batch_jobs.create_batch_job, world.owner, spec))


def patch(world: World, job: BatchJobRecord, **fields: Any) -> BatchJobRecord:
    changes = BatchJobPatch.model_validate(fields)
    return BatchJobRecord.model_validate(world.write(batch_jobs.patch_batch_job, world.owner, job.id, changes))


def queued(world: World, **fields: Any) -> BatchJobRecord:
    """One that the agent has submitted as it is."""
    made = request(world, **fields)
    return patch(world, made, state=B.QUEUED, scheduler_id="77", submitted=made.request)


def allow(world: World, **fields: Any) -> None:
    world.write(sites.patch_site, world.owner, world.site, SitePatch.model_validate(fields))


def told(world: World, job: BatchJobRecord) -> list[tuple[str, str, dict[str, Any]]]:
    page = world.read(feed.log, world.owner, EventQuery(kind=[Kind.BATCH_JOB], subject_id=[job.id], limit=100))
    return [(event["from_state"], event["to_state"], event["data"]) for event in page["results"]]


# --- what is allowed


def test_without_limits_anything_goes(world: World) -> None:
    assert request(world, queue="any", project="any", optional_params={"any": "1"}).optional_params == {"any": "1"}


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"queue": "other"}, "queue 'other' is not among its queues: debug, prod"),
        ({}, "queue 'local' is not among its queues: debug, prod"),
        ({"queue": "debug", "num_nodes": 3}, "num_nodes is 3, and queue 'debug' gives 2 at most"),
        ({"queue": "debug", "wall_time_min": 61}, "wall_time_min is 61, and queue 'debug' gives 60 at most"),
        ({"queue": "prod", "project": "bio"}, "project 'bio' is not among its projects: md, qmc"),
        (
            {"queue": "prod", "project": "md", "optional_params": {"b": "", "a": "", "qos": "x"}},
            "optional_params a, b are not among those it takes: filesystems, qos",
        ),
    ],
)
def test_what_is_not_allowed(world: World, fields: dict[str, Any], problem: str) -> None:
    limits = {"debug": {"max_nodes": 2, "max_wall_time_min": 60}, "prod": {}}
    params = {"filesystems": "home", "qos": None}
    allow(world, allowed_queues=limits, allowed_projects=["md", "qmc"], optional_batch_job_params=params)
    with pytest.raises(NotAllowed) as refused:
        request(world, **fields)
    assert problem in refused.value.detail["problems"]
    assert str(refused.value).startswith("site here does not allow this: ")
    assert problem in str(refused.value)
    assert request(world, queue="prod", project="md", num_nodes=9).optional_params == {"filesystems": "home"}


def test_a_queue_takes_so_many(world: World) -> None:
    allow(world, allowed_queues={"debug": {"max_queued_jobs": 2}, "prod": {}})
    first, _ = request(world, queue="debug"), queued(world, queue="debug")
    with pytest.raises(
        NotAllowed, match="queue 'debug' has 2 of its batch jobs, waiting or running, and the limit is 2"
    ):
        request(world, queue="debug")
    in_prod = request(world, queue="prod")
    with pytest.raises(NotAllowed, match="the limit is 2"):
        patch(world, in_prod, queue="debug")
    patch(world, first, wall_time_min=7)  # it has its place
    patch(world, first, state=B.FINISHED)
    assert patch(world, in_prod, queue="debug").queue == "debug"


def test_changes_must_be_allowed(world: World) -> None:
    allow(world, allowed_queues={"debug": {"max_nodes": 2}}, optional_batch_job_params={"a": "1", "b": None})
    made = request(world, queue="debug")
    with pytest.raises(NotAllowed, match="num_nodes is 3"):
        patch(world, made, num_nodes=3)
    assert patch(world, made, optional_params={"b": "2"}).optional_params == {"a": "1", "b": "2"}


# --- what changes while it waits


def test_before_it_is_submitted_it_is_just_the_record(world: World) -> None:
    made = request(world)
    wanted = {
        "num_nodes": 4,
        "wall_time_min": 5,
        "queue": "q",
        "project": "p",
        "optional_params": {"a": "1"},
        "filter_tags": {"k": "v"},
        "partitions": [{"num_nodes": 3, "job_mode": "serial", "filter_tags": {"x": "y"}}],
        "idle_ttl_sec": 9,
        "job_mode": "serial",
    }
    changed = patch(world, made, **wanted)
    assert changed.model_dump(include=set(wanted)) == wanted
    assert (changed.state, changed.submitted) == (B.PENDING_SUBMISSION, None)
    _, (source, target, data) = told(world, made)
    assert (source, target) == (B.PENDING_SUBMISSION, B.PENDING_SUBMISSION)
    assert data["changed"]["num_nodes"] == [2, 4]
    assert set(data["changed"]) == set(wanted)


def test_the_same_is_no_change(world: World) -> None:
    made = queued(world)
    before = told(world, made)
    assert patch(world, made, num_nodes=2, wall_time_min=30, filter_tags={}) == made
    assert told(world, made) == before


def test_while_it_is_queued_the_agent_is_told_and_tells(world: World) -> None:
    job = queued(world)
    changed = patch(world, job, num_nodes=4)
    assert changed.submitted is not None
    assert (changed.num_nodes, changed.submitted.num_nodes) == (4, 2)
    done = patch(world, job, submitted=changed.request)
    assert done.submitted == changed.request
    assert done.status_info == {}


def test_what_is_refused_goes_back_and_says_why(world: World) -> None:
    job = queued(world, partitions=[{"num_nodes": 2}])
    wanted = patch(world, job, num_nodes=4, partitions=[{"num_nodes": 4, "job_mode": "serial"}], filter_tags={"a": "b"})
    info = {"info": "Priority", "refused": "too many"}
    back = patch(world, job, refused=wanted.request, status_info=info)
    assert (back.num_nodes, back.partitions, back.submitted) == (2, job.partitions, job.request)
    assert back.filter_tags == {"a": "b"}, "no business of the scheduler"
    words = "num_nodes stays 2, not 4, and partitions as they were: too many"
    assert back.status_info == {"info": "Priority", "refused": words}
    assert told(world, job)[-1] == (B.QUEUED, B.QUEUED, {"refused": words})
    again = patch(world, job, num_nodes=3)
    assert again.status_info == {"info": "Priority"}, "that is over"


def test_a_refusal_of_what_is_no_longer_wanted_changes_nothing(world: World) -> None:
    job = queued(world)
    first = patch(world, job, num_nodes=4)
    second = patch(world, job, num_nodes=3)
    after = patch(world, job, refused=first.request)
    assert (after.num_nodes, after.submitted) == (3, second.submitted)


@pytest.mark.parametrize(("state", "late"), [(B.RUNNING, "started"), (B.FINISHED, "ended")])
def test_it_starts_before_it_is_changed(world: World, state: BatchJobState, late: str) -> None:
    job = queued(world)
    patch(world, job, num_nodes=4, wall_time_min=10)
    after = patch(world, job, state=state, status_info={"info": "x"})
    assert (after.num_nodes, after.wall_time_min) == (2, 30)
    words = f"num_nodes stays 2, not 4, wall_time_min stays 30, not 10: it {late} before that could be changed"
    assert after.status_info == {"info": "x", "refused": words}


def test_changed_while_the_agent_submitted_it(world: World) -> None:
    made = request(world)
    patch(world, made, queue="q")
    job = patch(world, made, state=B.QUEUED, scheduler_id="77", submitted=made.request)
    assert job.queue == "q"
    assert job.submitted == made.request
    other = request(world)
    patch(world, other, queue="q")
    started = patch(world, other, state=B.RUNNING, scheduler_id="78", submitted=other.request)
    assert started.queue == "local"
    assert "queue stays local, not q" in started.status_info["refused"]


def test_cancelled_it_is_as_the_scheduler_had_it(world: World) -> None:
    for job, nodes in ((queued(world), 2), (request(world), 4)):
        patch(world, job, num_nodes=4)
        patch(world, job, state=B.PENDING_DELETION)
        assert patch(world, job, state=B.FINISHED).num_nodes == nodes


@pytest.mark.parametrize("state", [B.RUNNING, B.PENDING_DELETION, B.FINISHED])
def test_afterwards_it_does_not_change(world: World, state: BatchJobState) -> None:
    job = queued(world)
    patch(world, job, state=state)
    with pytest.raises(Conflict, match=f"num_nodes, queue of batch job {job.id} cannot change any more: it is {state}"):
        patch(world, job, num_nodes=3, queue="other")
    patch(world, job, num_nodes=2)  # as it is


def test_partitions_must_fit(world: World) -> None:
    with pytest.raises(ValueError, match="partitions\n  Value error, they have 3 nodes together, and num_nodes is 2"):
        request(world, partitions=[{"num_nodes": 2}, {"num_nodes": 1, "job_mode": "serial"}])
    job = request(world, partitions=[{"num_nodes": 2}])
    with pytest.raises(InvalidRequest, match=r"partitions: .*they have 2 nodes together, and num_nodes is 1"):
        patch(world, job, num_nodes=1)
    assert patch(world, job, num_nodes=1, partitions=[{"num_nodes": 1}]).submitted is None


def test_what_was_told_travels(world: World) -> None:
    asked = AllocationRequest(num_nodes=1, wall_time_min=1, queue="q", optional_params={"a": "b"})
    job = patch(world, request(world), state=B.QUEUED, submitted=asked)
    page = world.read(batch_jobs.batch_job, world.owner, job.id)
    assert BatchJobRecord.model_validate(page).submitted == asked
