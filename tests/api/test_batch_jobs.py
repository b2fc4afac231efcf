"""Allocations as objects: asked for, found, changed, cancelled, forgotten."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from balsam_exec.api import BatchJob, BatchJobState, Client, Site
from balsam_exec.executors.libensemble.allocations import submit_allocation
from balsam_exec.model.batch_jobs import BatchJobPatch, Partition
from balsam_exec.model.errors import Conflict, InvalidRequest, NotAllowed

PARTS = [{"job_mode": "serial", "num_nodes": 1, "filter_tags": {"kind": "md"}}, {"num_nodes": 2}]


def queue(client: Client, batch_job: BatchJob) -> None:
    """As the agent of its site does."""
    batch_job.refresh_from_db()
    asked = client.service.batch_job(batch_job.id).request
    patch = BatchJobPatch(state=BatchJobState.QUEUED, scheduler_id="77", submitted=asked)
    client.service.patch_batch_job(batch_job.id, patch)
    batch_job.refresh_from_db()


def request(client: Client, site: Site, **fields: object) -> BatchJob:
    return client.BatchJob.objects.create(**{"site_id": site.id, "num_nodes": 3, "wall_time_min": 30, **fields})


def test_found_by_what_they_are(client: Client, site: Site) -> None:
    short, long = request(client, site, wall_time_min=5, queue="debug"), request(client, site, num_nodes=9)
    mine = client.BatchJob.objects.filter(site_id=site)
    assert mine.get(wall_time_min__lt=30) == short
    assert mine.get(num_nodes__gte=9, project="local", job_mode="mpi") == long
    assert list(mine.order_by("-id")) == [long, short]
    assert mine.exclude(queue="debug").get() == long
    later = datetime.now(UTC) + timedelta(minutes=5)
    assert mine.filter(created__lt=later, state="pending_submission").count() == 2
    assert mine.filter(start_time__lt=later).count() == 0
    with pytest.raises(client.BatchJob.MultipleObjectsReturned):
        mine.get()


def test_changed_while_it_waits(client: Client, site: Site) -> None:
    batch_job = request(client, site)
    batch_job.num_nodes = 5
    batch_job.partitions.append(Partition(num_nodes=2))
    batch_job.filter_tags["kind"] = "md"
    batch_job.save()
    assert batch_job.submitted is None
    queue(client, batch_job)
    assert client.BatchJob.objects.filter(id=batch_job.id).update(num_nodes=4, optional_params={"qos": "high"}) == 1
    found = client.BatchJob.objects.get(id=batch_job.id)
    assert (found.num_nodes, found.filter_tags, found.optional_params) == (4, {"kind": "md"}, {"qos": "high"})
    assert found.submitted is not None
    assert found.submitted.num_nodes == 5
    found.state = BatchJobState.RUNNING
    found.save()
    assert found.num_nodes == 5
    assert "num_nodes stays 5, not 4" in found.status_info["refused"]
    found.queue = "other"
    with pytest.raises(Conflict, match=r"queue of batch job .* cannot change any more: it is running"):
        found.save()
    found.refresh_from_db()
    with pytest.raises(AttributeError):
        found.submitted = None


def test_what_its_site_does_not_allow(client: Client, site: Site) -> None:
    site.allowed_queues = {"debug": {"max_nodes": 3}}  # type: ignore[dict-item]
    site.optional_batch_job_params = {"qos": None, "filesystems": "home"}
    site.save()
    with pytest.raises(NotAllowed, match="queue 'local' is not among its queues: debug") as refused:
        request(client, site)
    assert isinstance(refused.value, InvalidRequest)
    assert len(refused.value.detail["problems"]) == 1
    with pytest.raises(NotAllowed, match="optional_params qso are not among those it takes: qos, filesystems"):
        submit_allocation(client, site.id, num_nodes=1, wall_time_min=5, queue="debug", optional_params={"qso": "1"})
    batch_job = request(client, site, queue="debug", optional_params={"qos": "high"})
    assert batch_job.optional_params == {"qos": "high", "filesystems": "home"}
    batch_job.num_nodes = 4
    with pytest.raises(NotAllowed, match="queue 'debug' gives 3 at most"):
        batch_job.save()


def test_partitions(client: Client, site: Site) -> None:
    batch_job = submit_allocation(client, site.id, num_nodes=3, wall_time_min=5, partitions=PARTS)
    serial, mpi = client.BatchJob.objects.get(id=batch_job.id).partitions
    assert serial == Partition(job_mode="serial", num_nodes=1, filter_tags={"kind": "md"})
    assert mpi == Partition(num_nodes=2)


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        (PARTS, "partitions: .*they have 3 nodes together, and num_nodes is 2"),
        ([{"num_nodes": 0}], r"partitions\.0\.num_nodes: "),
        ([{"num_nodes": 1, "job_mode": "both"}], r"partitions\.0\.job_mode: .*'mpi' or 'serial'"),
        ([{"num_nodes": 1, "tags": {}}], r"partitions\.0\.tags: "),
        ([{}], r"partitions\.0\.num_nodes: .*required"),
    ],
)
def test_partitions_that_cannot_be(client: Client, parts: list[dict[str, object]], problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem):
        submit_allocation(client, 1, num_nodes=2, wall_time_min=5, partitions=parts)


def test_cancelled_and_forgotten(client: Client, site: Site) -> None:
    batch_job = request(client, site)
    with pytest.raises(Conflict, match="set it to pending_deletion"):
        batch_job.delete()
    batch_job.cancel()
    client.service.patch_batch_job(batch_job.id, BatchJobPatch(state=BatchJobState.FINISHED))
    assert client.BatchJob.objects.filter(site_id=site).delete() == 1
    with pytest.raises(client.BatchJob.DoesNotExist):
        client.BatchJob.objects.get(id=batch_job.id)
