"""Sites, apps and batch jobs."""

from __future__ import annotations

from typing import Any

import pytest

from balsam_exec.model.allowed import QueueLimits
from balsam_exec.model.apps import AppPatch, AppSpec
from balsam_exec.model.batch_jobs import BatchJobPatch, BatchJobRecord, BatchJobSpec
from balsam_exec.model.errors import Conflict, IllegalTransition, NotFound
from balsam_exec.model.events import Kind
from balsam_exec.model.queries import EventQuery
from balsam_exec.model.sites import SitePatch, SiteSpec
from balsam_exec.model.states import BATCH_JOB_ENDED, BATCH_JOB_TRANSITIONS, BatchJobState
from balsam_exec.server.service import apps, batch_jobs, feed, sites, update
from tests.server.world import World


def told(world: World, kind: Kind, subject: int) -> list[str]:
    page = world.read(feed.log, world.owner, EventQuery(kind=[kind], subject_id=[subject]))
    return [event["to_state"] for event in page["results"]]


def test_a_site_keeps_all_of_its_fields(world: World) -> None:
    spec = SiteSpec(
        name="there",
        path="/p",
        hostname="h",
        allowed_queues={"q": QueueLimits(max_nodes=3)},
        allowed_projects=["a"],
        optional_batch_job_params={"x": "y", "z": None},
        transfer_locations={"l": "u"},
        globus_endpoint_id="g",
    )
    site = world.write(sites.create_site, world.owner, spec)
    assert SiteSpec.model_validate({name: site[name] for name in SiteSpec.model_fields}) == spec
    changed = world.write(sites.patch_site, world.owner, site["id"], SitePatch(hostname="i", allowed_projects=[]))
    assert changed == {**site, "hostname": "i", "allowed_projects": []}
    assert told(world, Kind.SITE, site["id"]) == ["updated"] * 2


def test_a_sign_of_life_is_no_event(world: World) -> None:
    assert world.read(sites.site, world.owner, world.site, world.now)["last_refresh"] is None
    before = told(world, Kind.SITE, world.site)
    site = world.write(sites.patch_site, world.owner, world.site, SitePatch(refresh=True))
    assert site["last_refresh"] is not None
    assert told(world, Kind.SITE, world.site) == before


def test_names_of_sites_are_unique(world: World) -> None:
    with pytest.raises(Conflict, match=f"id {world.site}"):
        world.write(sites.create_site, world.owner, SiteSpec(name="here"))
    other = world.write(sites.create_site, world.owner, SiteSpec(name="there"))["id"]
    with pytest.raises(Conflict):
        world.write(sites.patch_site, world.owner, other, SitePatch(name="here"))
    world.write(sites.patch_site, world.owner, other, SitePatch(name="there"))


def test_a_site_goes_with_its_apps_but_not_with_its_jobs(world: World) -> None:
    [job] = world.finished(world.spec())
    with pytest.raises(Conflict, match="delete them first"):
        world.write(sites.delete_site, world.owner, world.site)
    with pytest.raises(Conflict, match="delete them first"):
        world.write(apps.delete_app, world.owner, world.python)
    world.write(update.delete_job, world.owner, job)
    world.write(apps.delete_app, world.owner, world.python)
    assert told(world, Kind.APP, world.python)[-1] == "deleted"
    world.write(sites.delete_site, world.owner, world.site)
    assert told(world, Kind.SITE, world.site)[-1] == "deleted"
    with pytest.raises(NotFound):
        world.read(apps.app, world.owner, world.hooked)


FULL: dict[str, Any] = {
    "name": "Full",
    "description": "d",
    "parameters": {"x": {"required": False, "default": "1", "help": "h"}},
    "environment_variables": {"A": "B"},
    "transfers": {"in": {"direction": "in", "local_path": ".", "recursive": True}},
    "cleanup_files": ["*.tmp"],
    "python_exe": "/usr/bin/python3",
    "container": "apptainer exec --nv image.sif",
    "isolation": "process",
    "hooks": ["run", "preprocess"],
    "payload": b"\x00\xff",
}


def test_an_app_keeps_all_of_its_fields(world: World) -> None:
    spec = AppSpec(site_id=world.site, **FULL)
    app = world.write(apps.create_app, world.owner, spec)
    shown = {name: app[name] for name in AppSpec.model_fields}
    assert shown == {**spec.model_dump(mode="json", exclude={"payload"}), "payload": spec.payload}
    with pytest.raises(Conflict, match="PUT replaces it"):
        world.write(apps.create_app, world.owner, spec)


def test_putting_the_same_app_again_changes_nothing(world: World) -> None:
    spec = AppSpec(site_id=world.site, **FULL)
    first = world.write(apps.put_app, world.owner, spec)
    world.later(5)
    assert world.write(apps.put_app, world.owner, spec) == first
    assert told(world, Kind.APP, first["id"]) == ["updated"]


@pytest.mark.parametrize(
    ("change", "another"),
    [
        ({"payload": b"other"}, True),
        ({"container": "apptainer exec other.sif"}, True),
        ({"container": None}, True),
        ({"environment_variables": {}}, True),
        ({"isolation": "worker"}, True),
        ({"description": "other"}, False),
    ],
)
def test_the_digest_tells_what_runs(world: World, change: dict[str, Any], another: bool) -> None:
    first = world.write(apps.put_app, world.owner, AppSpec(site_id=world.site, **FULL))
    second = world.write(apps.put_app, world.owner, AppSpec(site_id=world.site, **{**FULL, **change}))
    assert second["id"] == first["id"]
    assert (second["digest"] != first["digest"]) is another
    assert told(world, Kind.APP, first["id"]) == ["updated"] * 2


def test_renaming(world: World) -> None:
    renamed = world.write(apps.rename_app, world.owner, world.python, AppPatch(name="Simple"))
    assert (renamed["id"], renamed["name"]) == (world.python, "Simple")
    with pytest.raises(Conflict):
        world.write(apps.rename_app, world.owner, world.python, AppPatch(name="Hooked"))


@pytest.fixture
def batch_job(world: World) -> int:
    spec = BatchJobSpec(site_id=world.site, num_nodes=2, wall_time_min=10, filter_tags={"a": "b"}, idle_ttl_sec=0)
    found = world.write(batch_jobs.create_batch_job, world.owner, spec)
    assert {name: found[name] for name in BatchJobSpec.model_fields} == spec.model_dump()
    BatchJobRecord.model_validate(found)
    return int(found["id"])


@pytest.mark.parametrize("target", sorted(BatchJobState))
def test_batch_jobs_follow_their_table(world: World, batch_job: int, target: BatchJobState) -> None:
    source = BatchJobState.PENDING_SUBMISSION
    patch = BatchJobPatch(state=target, scheduler_id="7", status_info={"why": "x"})
    if target is source or (source, target) in BATCH_JOB_TRANSITIONS:
        changed = world.write(batch_jobs.patch_batch_job, world.owner, batch_job, patch)
        assert (changed["state"], changed["scheduler_id"], changed["status_info"]) == (target, "7", {"why": "x"})
        if target in BATCH_JOB_ENDED:
            world.write(batch_jobs.delete_batch_job, world.owner, batch_job)
            assert told(world, Kind.BATCH_JOB, batch_job) == [source, target, "deleted"]
            return
    else:
        with pytest.raises(IllegalTransition, match="from here"):
            world.write(batch_jobs.patch_batch_job, world.owner, batch_job, patch)
    with pytest.raises(Conflict, match="pending_deletion"):
        world.write(batch_jobs.delete_batch_job, world.owner, batch_job)


def test_a_deleted_batch_job_leaves_its_jobs(world: World, batch_job: int) -> None:
    [job_id] = world.create()
    session = world.open(batch_job_id=batch_job)
    [job] = world.acquire(session)
    world.run(session, job)
    world.write(batch_jobs.patch_batch_job, world.owner, batch_job, BatchJobPatch(state=BatchJobState.FINISHED))
    world.write(batch_jobs.delete_batch_job, world.owner, batch_job)
    assert world.job(job_id)["batch_job_id"] is None
