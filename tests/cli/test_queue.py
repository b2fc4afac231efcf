"""`balsam queue`: what can be asked for, changed and told of allocations."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from balsam_exec.cli.histories import Story, story
from balsam_exec.model.batch_jobs import BatchJobPatch, BatchJobRecord
from balsam_exec.model.events import EventRecord, Kind
from balsam_exec.model.sites import SitePatch, SiteRecord
from balsam_exec.model.states import BatchJobState
from tests.cli.conftest import Balsam
from tests.support.processes import wait_until

B = BatchJobState


def patch(balsam: Balsam, batch_job_id: int, **fields: Any) -> None:
    balsam.service.patch_batch_job(batch_job_id, BatchJobPatch.model_validate(fields))


def queue(balsam: Balsam, batch_job_id: int) -> None:
    """As the agent of its site does."""
    asked = balsam.service.batch_job(batch_job_id).request
    patch(balsam, batch_job_id, state=B.QUEUED, scheduler_id="77", submitted=asked, status_info={"info": "Priority"})


def test_parts_and_options(balsam: Balsam, site: SiteRecord) -> None:
    made = balsam.json("queue", "submit", "--part", "serial:2", "--part", "mpi:4:kind=md,size=big", "-o", "qos=high")
    assert made["num_nodes"] == 6
    assert made["optional_params"] == {"qos": "high"}
    assert made["partitions"] == [
        {"job_mode": "serial", "num_nodes": 2, "filter_tags": {}},
        {"job_mode": "mpi", "num_nodes": 4, "filter_tags": {"kind": "md", "size": "big"}},
    ]
    assert balsam.json("queue", "submit", "--part", "serial:2", "-n", 3)["num_nodes"] == 3


@pytest.mark.parametrize("part", ["serial", "other:2", "mpi:0", "mpi:x", "mpi:2:kind", "mpi:2:=x"])
def test_parts_that_are_none(balsam: Balsam, part: str) -> None:
    assert "--part" in balsam.fails("queue", "submit", "--part", part, code=2)


def test_parts_that_do_not_fit(balsam: Balsam, site: SiteRecord) -> None:
    told = balsam.fails("queue", "submit", "-n", 1, "--part", "serial:2", code=2)
    assert "partitions: " in told
    assert "they have 2 nodes together, and num_nodes is 1" in told


def test_what_the_site_does_not_allow(balsam: Balsam, site: SiteRecord) -> None:
    limits = {"debug": {"max_nodes": 2}}
    balsam.service.patch_site(site.id, SitePatch.model_validate({"allowed_queues": limits}))
    told = balsam.fails("queue", "submit", "-q", "prod")
    assert "site theta does not allow this: queue 'prod' is not among its queues: debug" in told
    made = int(balsam("queue", "submit", "-q", "debug"))
    assert "queue 'debug' gives 2 at most" in balsam.fails("queue", "modify", made, "-n", 3)


def test_modify(balsam: Balsam, site: SiteRecord) -> None:
    first, second = int(balsam("queue", "submit", "-n", 2)), int(balsam("queue", "submit", "-n", 2))
    queue(balsam, second)
    assert balsam("queue", "modify", first, second, "-n", 4, "-t", 7, "--tag", "a=b", "--part", "mpi:1") == "2\n"
    for batch_job_id in (first, second):
        job = balsam.service.batch_job(batch_job_id)
        assert (job.num_nodes, job.wall_time_min, job.filter_tags) == (4, 7, {"a": "b"})
        assert [partition.num_nodes for partition in job.partitions] == [1]
    rows = balsam.rows("queue", "ls")
    assert [row["INFO"] for row in rows] == ["", "Priority; to be changed: num_nodes, wall_time_min"]
    [told] = balsam.json("queue", "modify", first, "-j", "serial", "-q", "x", "-A", "p", "--idle", 0, "-o", "a=1")
    assert (told["job_mode"], told["queue"], told["project"], told["idle_ttl_sec"]) == ("serial", "x", "p", 0)
    assert told["optional_params"] == {"a": "1"}
    assert "nothing to change" in balsam.fails("queue", "modify", first, code=2)
    patch(balsam, second, state=B.RUNNING)
    assert "it is running" in balsam.fails("queue", "modify", second, "-n", 1)
    assert "99" in balsam.fails("queue", "modify", 99, "-n", 1)


def test_submit_can_wait_until_it_runs(balsam: Balsam, site: SiteRecord) -> None:
    def when_asked(state: BatchJobState, **fields: Any) -> None:
        service = balsam.service.sibling()
        wait_until(lambda: bool(service.batch_jobs(state=[B.PENDING_SUBMISSION]).results), 20, "the request")
        [waiting] = service.batch_jobs(state=[B.PENDING_SUBMISSION]).results
        service.patch_batch_job(waiting.id, BatchJobPatch(state=state, **fields))
        service.close()

    agent = threading.Thread(target=when_asked, args=[B.RUNNING], kwargs={"start_time": datetime.now(UTC)})
    agent.start()
    assert balsam.json("queue", "submit", "--wait")["state"] == "running"
    agent.join()
    refusal = {"status_info": {"error": "no such account"}}
    agent = threading.Thread(target=when_asked, args=[B.SUBMIT_FAILED], kwargs=refusal)
    agent.start()
    assert "is submit_failed: no such account" in balsam.fails("queue", "submit", "--wait")
    agent.join()
    agent = threading.Thread(target=when_asked, args=[B.PENDING_DELETION])
    agent.start()
    assert "is pending_deletion: no reason given" in balsam.fails("queue", "submit", "--wait")
    agent.join()


def test_history(balsam: Balsam, site: SiteRecord) -> None:
    first, second, third = (int(balsam("queue", "submit", "-n", 2)) for _ in range(3))
    started = datetime.now(UTC) - timedelta(hours=1)
    queue(balsam, first)
    patch(balsam, first, num_nodes=4)
    patch(balsam, first, state=B.RUNNING, start_time=started, status_info={})
    ended = {"end_time": started + timedelta(minutes=15), "status_info": {"info": "exit code 0"}}
    patch(balsam, first, state=B.FINISHED, **ended)
    patch(balsam, second, state=B.SUBMIT_FAILED, status_info={"error": "no such account"})
    rows = balsam.rows("queue", "history")
    assert [int(row["ID"]) for row in rows] == [third, second, first]
    assert [row["NODE-HOURS"] for row in rows] == ["0.00", "0.00", "0.50"]
    assert [row["WHY"] for row in rows] == ["", "no such account", "exit code 0"]
    assert [bool(row["QUEUED"]) for row in rows] == [False, False, True]
    assert balsam.rows("queue", "history", "--limit", 1, "--site", "theta") == rows[:1]
    told = balsam("queue", "history", first, second)
    assert "num_nodes 2 -> 4" in told
    assert "num_nodes stays 2, not 4: it started before" in told
    assert told.index(f"Batch job {second} ") < told.index(f"Batch job {first} of 2 nodes for 60 min, by user")
    found = [Story.model_validate(item, extra="forbid") for item in balsam.json("queue", "history", first)]
    assert [(item.id, item.node_hours, item.jobs, len(item.history)) for item in found] == [(first, 0.5, 0, 6)]
    assert balsam.json("queue", "history", "--site", "all")[0]["id"] == third
    assert "there is no batch job 99" in balsam.fails("queue", "history", first, 99)


NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def event(number: int, source: str, target: str) -> EventRecord:
    at = NOW + timedelta(minutes=number)
    values = {"id": number, "kind": Kind.BATCH_JOB, "subject_id": 1, "timestamp": at}
    return EventRecord.model_validate({**values, "from_state": source, "to_state": target})


def test_what_a_story_reckons() -> None:
    record = BatchJobRecord(id=1, site_id=1, num_nodes=3, wall_time_min=60, state=B.RUNNING, created=NOW)
    events = [
        event(1, "", "pending_submission"),
        event(2, "pending_submission", "queued"),
        event(3, "queued", "queued"),
    ]
    waiting = story(record, events, 0, NOW)
    assert (waiting.queued_time, waiting.node_hours) == (NOW + timedelta(minutes=2), 0)
    running = story(record.model_copy(update={"start_time": NOW}), events[:1], 5, NOW + timedelta(minutes=20))
    assert (running.queued_time, running.node_hours, running.jobs) == (None, 1, 5)
    skewed = story(record.model_copy(update={"start_time": NOW, "end_time": NOW - timedelta(1)}), [], 0, NOW)
    assert skewed.node_hours == 0
