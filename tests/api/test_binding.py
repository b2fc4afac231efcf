"""Which service is used; the other resources; the public names."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

import balsam_exec.api
from balsam_exec.api import ApplicationDefinition, BatchJob, BatchJobState, Client, EventLog, Job, Site, TransferItem
from balsam_exec.client.service import Service
from balsam_exec.model.errors import ConfigurationError, InvalidRequest, NotFound
from balsam_exec.model.events import Kind
from tests.support.services import LiveService

PUBLIC = [
    "App",
    "ApplicationDefinition",
    "BatchJob",
    "BatchJobState",
    "Client",
    "EventLog",
    "Job",
    "JobState",
    "Site",
    "TransferItem",
    "WaitResult",
    "current_job",
]


def test_the_public_names() -> None:
    assert balsam_exec.api.__all__ == PUBLIC
    for name in PUBLIC:
        assert getattr(balsam_exec.api, name).__module__.startswith("balsam_exec.")


def test_importing_the_api_leaves_the_heavy_things_alone() -> None:
    program = "import sys, balsam_exec.api; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"dill", "cloudpickle", "jinja2", "requests", "numpy", "fastapi", "sqlalchemy", "rich"} & set(loaded)


def test_without_configuration_the_first_use_says_what_to_do() -> None:
    with pytest.raises(ConfigurationError, match="balsam up"):
        Job.objects.count()


@pytest.mark.usefixtures("configured")
def test_the_configured_service_and_site_are_the_default(site: Site, live: LiveService) -> None:
    assert Site.objects.get(id=site.id) == site
    assert Site.client() is Job.client()
    assert Site.client().site_id() == site.id
    assert Job.client().service == Service(live.url, live.token)


def test_another_configuration_is_another_client(
    live: LiveService, site: Site, configured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Job.client()
    assert Job.client() is first
    found = Site.objects.get(id=site.id)
    monkeypatch.setenv("BALSAM_TOKEN", "wrong")
    assert Job.client() is not first
    found.refresh_from_db()  # an object stays with the service it came from


def test_two_services_in_one_program(
    client: Client, site: Site, start_service: Callable[[str], LiveService], sqlite_url: str, echo: Any
) -> None:
    other = Client(start_service(sqlite_url).service)
    there = other.Site.objects.create(name=site.name)
    assert {found.name for found in other.Site.objects.all()} == {site.name}
    app = type("There", (ApplicationDefinition,), {"site": there, "command_template": "true"})
    job = app.submit("w")
    assert other.Job.objects.get(app_id=app) == job
    assert other.Job.objects.count() == 1
    mine = echo.submit("w", words="x")
    assert client.Job.objects.filter(site=site).count() == 1
    assert mine != job
    with pytest.raises(InvalidRequest, match="several services"):
        client.Job.objects.wait([mine, job])
    # A class with its site by name can be used with either.
    both = type("Both", (ApplicationDefinition,), {"site": site.name, "command_template": "true"})
    assert client.Job.objects.create(workdir="w", app_id=both).site_id == site.id
    assert other.Job.objects.create(workdir="w", app_id=both).site_id == there.id
    # Equal numbers do not make equal things.
    assert other.Site.objects.get(id=there.id) == there
    assert client.Site(name="x") != there


def test_sites(client: Client, site: Site) -> None:
    site.transfer_locations["laptop"] = "globus://abc"
    site.hostname = "login1"
    site.save()
    found = client.Site.objects.get(name=site.name)
    assert (found.hostname, found.transfer_locations) == ("login1", {"laptop": "globus://abc"})
    assert f"name='{site.name}'" in repr(found)
    assert client.Site.objects.filter(name__startswith="site-", hostname="login1", id=site.id).count() == 1
    site.delete()
    with pytest.raises(client.Site.DoesNotExist):
        client.Site.objects.get(name=site.name)
    with pytest.raises(InvalidRequest, match="name"):
        client.Site.objects.create(path="/x")


def test_batch_jobs(client: Client, site: Site) -> None:
    made = client.BatchJob.objects.create(
        site_id=site.id, num_nodes=2, wall_time_min=30, job_mode="serial", queue="debug", filter_tags={"a": "b"}
    )
    assert (made.state, made.project) == (BatchJobState.PENDING_SUBMISSION, "local")
    by_name = client.BatchJob.objects.create(site_name=site.name, num_nodes=1, wall_time_min=1)
    assert by_name.site_id == site.id
    assert set(client.BatchJob.objects.filter(site=site)) == {made, by_name}
    assert client.BatchJob.objects.filter(queue="debug", site_id=site).get() == made
    made.scheduler_id = "77"
    made.state = BatchJobState.QUEUED
    made.save()
    made.cancel()
    assert made.state is BatchJobState.PENDING_DELETION
    made.cancel()
    assert client.BatchJob.objects.get(id=made.id).scheduler_id == "77"


def test_waiting_for_an_allocation_to_end(client: Client, site: Site) -> None:
    made = client.BatchJob.objects.create(site_id=site, num_nodes=1, wall_time_min=1)
    with pytest.raises(TimeoutError):
        made.wait(timeout=0.1)
    other = client.BatchJob.objects.get(id=made.id)

    def end() -> None:
        other.state = BatchJobState.FINISHED
        other.status_info = {"error": "no such queue"}
        other.save()

    timer = threading.Timer(0.2, end)
    timer.start()
    assert made.wait(timeout=20) is BatchJobState.FINISHED
    timer.join()
    assert made.status_info == {"error": "no such queue"}
    assert made.wait() is BatchJobState.FINISHED


def test_events(client: Client, echo: Any, site: Site) -> None:
    job = echo.submit("w", words="x", tags={"run": site.name})
    client.service.cancel_jobs([job.id])
    log = client.EventLog.objects.filter(job_id=job.id)
    assert [event.to_state for event in log][-2:] == ["PREPROCESSED", "USER_KILLED"]
    first, last = log.first(), log.order_by("-id").first()
    assert first is not None
    assert last is not None
    assert first.timestamp <= last.timestamp
    assert (last.kind, last.job_id, last.site_id) == (Kind.JOB, job.id, site.id)
    assert client.EventLog.objects.filter(job_id=job.id, timestamp__gt=last.timestamp).count() == 0
    assert client.EventLog.objects.filter(to_state="USER_KILLED", tags={"run": site.name}).get() == last
    with pytest.raises(AttributeError):
        last.to_state = "FAILED"
    for misuse in (last.delete, last.refresh_from_db, lambda: client.EventLog.objects.create(kind="job")):
        with pytest.raises(InvalidRequest):
            misuse()


def test_transfers(client: Client, site: Site) -> None:
    site.transfer_locations = {"laptop": "local:/data"}
    site.save()

    class Stage(ApplicationDefinition):
        command_template = "true"
        transfers = {
            "input_file": {"direction": "in", "local_path": "in.dat"},
            "result": {"direction": "out", "local_path": "job.out", "required": False},
        }

    Stage.site = site
    job = client.Job.objects.create(workdir="w", app_id=Stage, transfers={"input_file": "laptop:/path/to/input.dat"})
    [item] = client.TransferItem.objects.filter(job_id=job.id)
    assert (item.slot, item.direction, item.location) == ("input_file", "in", "laptop")
    assert (item.remote_path, item.local_path, item.site_id) == ("/path/to/input.dat", "in.dat", site.id)
    item.state = "active"
    item.task_id = "t1"
    item.save()
    assert client.TransferItem.objects.get(task_id="t1", job_id=job.id).state == "active"
    with pytest.raises(InvalidRequest):
        item.delete()


def test_someone_elses_or_no_such_id_is_not_found(client: Client) -> None:
    for kind in (client.Site, client.Job, client.BatchJob, client.App, client.TransferItem):
        with pytest.raises(kind.DoesNotExist):
            kind.objects.get(id=10**12)
    with pytest.raises(NotFound):
        client.service.job(10**12)


def test_every_resource_names_its_fields() -> None:
    for kind in (Site, Job, BatchJob, EventLog, TransferItem):
        assert "id" in kind.fields()
        assert len(kind.fields()) == len(set(kind.fields()))
