"""Jobs as objects: creating, changing, never losing a change."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from balsam_exec.api import ApplicationDefinition, Client, Job, JobState, Site
from balsam_exec.api.jobs import JOB_FIELDS
from balsam_exec.model.errors import DoesNotExist, IllegalTransition, InvalidRequest, NotFound, ParameterError, TooLarge
from balsam_exec.model.jobs import JobSpec, Resources

RESOURCES = {
    "num_nodes": 2,
    "ranks_per_node": 4,
    "threads_per_rank": 3,
    "threads_per_core": 2,
    "gpus_per_rank": 0.5,
    "node_packing_count": 5,
    "wall_time_min": 30,
    "launch_params": {"bind": "none"},
}


def test_every_field_travels(echo: Any, client: Client) -> None:
    parent = echo.submit("parent", words="hi")
    job = client.Job(
        "a/b",
        echo,
        parameters={"words": "hello", "code": "0"},
        tags={"run": "a"},
        data={"x": [1, {"y": None}]},
        parent_ids=[parent],
        **RESOURCES,  # type: ignore[arg-type]
    )
    job.save()
    again = client.Job.objects.get(id=job.id)
    for found in (job, again):
        assert {name: getattr(found, name) for name in RESOURCES} == RESOURCES
        assert (found.workdir, found.tags, found.data) == ("a/b", {"run": "a"}, {"x": [1, {"y": None}]})
        assert (found.parameters, found.parent_ids) == ({"words": "hello", "code": "0"}, [parent.id])
        assert (found.app_id, found.site_id) == (echo.__app_id__, echo.site.id)
        assert found.state is JobState.AWAITING_PARENTS
        assert found.created <= found.last_update
    assert job == again
    assert len({job, again}) == 1


def test_every_resource_of_the_model_is_a_field(client: Client) -> None:
    assert set(Resources.model_fields) <= JOB_FIELDS
    assert set(JobSpec.model_fields) >= JOB_FIELDS
    assert set(client.Job.fields()) >= set(JobSpec.model_fields) - {"arguments"}


def test_an_app_by_class_id_or_name(echo: Any, client: Client, site: Site) -> None:
    echo.sync()
    created = [
        client.Job("w", echo, parameters={"words": "x"}),
        client.Job("w", echo.__app_id__, parameters={"words": "x"}),
        client.Job("w", "Echo", site.name, parameters={"words": "x"}),
        client.Job("w", "Echo", site.id, parameters={"words": "x"}),
        client.Job("w", app_name="module.Echo", site_name=site, parameters={"words": "x"}),
        client.Job("w", client.App.objects.get(site_id=site), parameters={"words": "x"}),
    ]
    assert {job.app_id for job in client.Job.objects.bulk_create(created)} == {echo.__app_id__}


def test_a_name_at_two_sites_needs_a_site_or_a_default(client: Client, site: Site) -> None:
    name = f"App{site.name[5:]}"
    other = client.Site.objects.create(name=site.name + "-2")
    here, there = (
        type(name, (ApplicationDefinition,), {"site": where, "command_template": "true"}) for where in (site, other)
    )
    here.sync()
    assert client.Job.objects.create(workdir="w", app_id=name).site_id == site.id
    there.sync()
    with pytest.raises(InvalidRequest, match=f"{site.id}, {other.id}"):
        client.Job.objects.create(workdir="w", app_id=name)
    client.service.default_site = other.name
    assert client.Job.objects.create(workdir="w", app_id=name).site_id == other.id


@pytest.mark.parametrize("ref", [10**15, "Nowhere", object()])
def test_an_app_that_is_not_there(client: Client, site: Site, ref: Any) -> None:
    with pytest.raises((NotFound, InvalidRequest)):
        client.Job("w", ref, site).save()


def test_which_app_has_to_be_said(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="which app"):
        client.Job("w")
    with pytest.raises(InvalidRequest, match="which app"):
        client.Job("w", 1, app_name="Echo")


def test_a_misspelt_field_is_an_error(echo: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"num_node\b.*num_nodes"):
        Job("w", echo, num_node=3)  # type: ignore[call-arg]
    job = echo.submit("w", words="x", save=False)
    with pytest.raises(AttributeError):
        job.num_node = 3
    with pytest.raises(AttributeError, match="set by the service"):
        job.id = 3


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"num_nodes": 0}, "num_nodes"),
        ({"wall_time_min": "long"}, "wall_time_min"),
        ({"tags": {"a": 1}}, "tags.a"),
        ({"tags": "a:b"}, "tags"),
        ({"data": {"x": float("nan")}}, "JSON"),
        ({"data": {"x": object()}}, "JSON"),
        ({"parent_ids": ["seven"]}, "seven"),
        ({"launch_params": {"a": None}}, "launch_params"),
    ],
)
def test_a_bad_value_is_refused_before_anything_is_sent(
    echo: Any, client: Client, values: dict[str, Any], said: str
) -> None:
    good = echo.submit("w", words="x", save=False)
    bad = client.Job("w", echo, parameters={"words": "x"}, **values)
    with pytest.raises(InvalidRequest, match=said):
        client.Job.objects.bulk_create([good, bad])
    assert client.Job.objects.filter(site=echo.site).count() == 0


@pytest.mark.parametrize("workdir", ["", "/abs", "a/../b"])
def test_a_workdir_stays_in_the_site(echo: Any, workdir: str) -> None:
    with pytest.raises(InvalidRequest, match="workdir"):
        echo.submit(workdir, words="x")


def test_a_change_is_sent_and_only_that(echo: Any, client: Client) -> None:
    job = echo.submit("w", words="x", tags={"a": "1"})
    other = client.Job.objects.get(id=job.id)
    job.num_nodes = 3
    other.data = {"mine": True}
    job.save()
    other.save()
    job.refresh_from_db()
    assert (job.num_nodes, job.data) == (3, {"mine": True})


def test_a_change_inside_a_field_is_never_lost(echo: Any, client: Client) -> None:
    job = echo.submit("w", words="x", data={"deep": {"list": [1]}})
    job.data["x"] = 1
    job.tags["t"] = "2"
    job.save()
    job.data["deep"]["list"].append(2)
    job.save()
    held = job.data
    held["later"] = 3
    job.save()
    held["last"] = 4  # the same dict, after it was saved
    job.save()
    found = client.Job.objects.get(id=job.id)
    assert found.data == {"deep": {"list": [1, 2]}, "x": 1, "later": 3, "last": 4}
    assert found.tags == {"t": "2"}
    found.data["x"] = 5
    found.launch_params["a"] = "b"
    assert client.Job.objects.bulk_update([found]) == 1
    found.data["deep"]["list"].append(3)
    assert client.Job.objects.bulk_update([found]) == 1
    job.refresh_from_db()
    assert held is job.data
    assert job.data == {"deep": {"list": [1, 2, 3]}, "x": 5, "later": 3, "last": 4}
    assert job.launch_params == {"a": "b"}


def test_reading_is_no_change(divide: Any, client: Client) -> None:
    job = client.Job.objects.get(id=divide.submit("w", x=1, data={"a": {}}).id)
    before = job.last_update
    assert (job.data, job.tags, job.parent_ids, job.parameters) == ({"a": {}}, {}, [], {"x": 1})
    assert client.Job.objects.bulk_update([job]) == 0
    job.save()
    job.refresh_from_db()
    assert job.last_update == before


def test_what_is_assigned_is_copied(echo: Any) -> None:
    shared = {"a": [1]}
    one, two = (echo.submit("w", words="x", data=shared, save=False) for _ in range(2))
    one.data["a"].append(2)
    assert (two.data, shared) == ({"a": [1]}, {"a": [1]})


def test_parameters_of_a_command_can_change(echo: Any, client: Client) -> None:
    job = echo.submit("w", words="x")
    job.parameters["words"] = "y"
    job.save()
    assert client.Job.objects.get(id=job.id).parameters == {"words": "y"}
    job.parameters = {"word": "z"}
    with pytest.raises(ParameterError, match="unknown: word"):
        job.save()


def test_parameters_of_a_python_app_are_decoded_and_can_change(divide: Any, client: Client) -> None:
    job = divide.submit("w", x=6)
    assert job.parameters == {"x": 6}
    found = client.Job.objects.get(id=job.id)
    found.parameters["y"] = 3
    found.save()
    job.refresh_from_db()
    assert job.parameters == {"x": 6, "y": 3}


def test_the_state_can_be_set_with_data_for_its_event(echo: Any, client: Client) -> None:
    job = echo.submit("w", words="x")
    job.state = "FAILED"
    job.state_data = {"reason": "bad coordinates"}
    job.save()
    assert (job.state, job.state_data) == (JobState.FAILED, None)
    assert client.EventLog.objects.get(job_id=job.id, to_state="FAILED").data == {"reason": "bad coordinates"}
    job.state = JobState.RUNNING
    with pytest.raises(IllegalTransition):
        job.save()
    with pytest.raises(InvalidRequest, match="RESTART_READY"):
        job.state = "DONE"


def test_what_cannot_change_says_so(echo: Any, divide: Any) -> None:
    job = echo.submit("w", words="x")
    job.transfers = {"input": "laptop:/x"}
    with pytest.raises(InvalidRequest, match="transfers of a saved Job cannot change"):
        job.save()
    job.refresh_from_db()
    job.num_nodes = None  # type: ignore[assignment]
    with pytest.raises(InvalidRequest, match="cannot be None"):
        job.save()


def test_deleting(echo: Any, client: Client) -> None:
    job = echo.submit("w", words="x")
    job.delete()
    with pytest.raises(NotFound):
        job.refresh_from_db()
    with pytest.raises(client.Job.DoesNotExist):
        client.Job.objects.get(id=job.id)


def test_bulk_create_settles_parents_among_the_jobs(echo: Any, client: Client) -> None:
    top, left, right, bottom = (echo.submit(name, words=name, save=False) for name in ("top", "l", "r", "bottom"))
    left.parent_ids = [top]
    right.parent_ids = [top]
    bottom.parent_ids.extend([left, right])
    created = client.Job.objects.bulk_create([bottom, left, right, top])
    assert created == [bottom, left, right, top]
    assert top.state is JobState.PREPROCESSED
    assert bottom.state is JobState.AWAITING_PARENTS
    assert set(client.Job.objects.filter(parent_id=top)) == {left, right}
    assert client.Job.objects.get(parent_id=[left, right]) == bottom
    stray = echo.submit("s", words="s", parent_ids=[echo.submit("u", words="u", save=False)], save=False)
    with pytest.raises(InvalidRequest, match="parents"):
        client.Job.objects.bulk_create([stray])


def test_bulk_create_of_many_keeps_the_order(echo: Any, client: Client) -> None:
    jobs = client.Job.objects.bulk_create(
        echo.submit(f"w/{i}", words=str(i), tags={"i": str(i)}, save=False) for i in range(4500)
    )
    assert [job.id for job in jobs] == sorted(job.id for job in jobs)
    found = {job.id: job.workdir for job in client.Job.objects.filter(site=echo.site)}
    assert found == {job.id: job.workdir for job in jobs}
    assert client.Job.objects.get(site=echo.site, tags={"i": "4321"}) == jobs[4321]


def test_bulk_create_again_with_the_same_key_makes_nothing_new(echo: Any, client: Client) -> None:
    def campaign() -> list[Job]:
        parent = echo.submit("w", words="x", save=False)
        return [parent, echo.submit("w", words="y", parent_ids=[parent], save=False)]

    first = client.Job.objects.bulk_create(campaign(), key=f"run {echo.site.name}")
    assert client.Job.objects.bulk_create(campaign(), key=f"run {echo.site.name}") == first
    assert client.Job.objects.bulk_create(campaign()) != first
    assert client.Job.objects.filter(site=echo.site).count() == 4


def test_bulk_update_sends_what_differs_all_or_nothing(echo: Any, client: Client) -> None:
    jobs = client.Job.objects.bulk_create(echo.submit(f"w/{i}", words="x", save=False) for i in range(4))
    for i, job in enumerate(jobs[:3]):
        job.tags["i"] = str(i)
    jobs[0].num_nodes = 7
    assert client.Job.objects.bulk_update(jobs) == 3
    found = list(client.Job.objects.filter(site=echo.site))
    assert [(job.num_nodes, job.tags) for job in found] == [(7, {"i": "0"}), (1, {"i": "1"}), (1, {"i": "2"}), (1, {})]
    jobs[0].num_nodes = 1
    jobs[1].state = JobState.RUNNING
    with pytest.raises(IllegalTransition):
        client.Job.objects.bulk_update(jobs)
    assert client.Job.objects.get(id=jobs[0].id).num_nodes == 7


def test_saving_twice_is_not_creating_twice(echo: Any, client: Client) -> None:
    job = echo.submit("w", words="x")
    job.save()
    assert client.Job.objects.filter(site=echo.site).count() == 1
    with pytest.raises(InvalidRequest, match="saved already"):
        client.Job.objects.bulk_create([job])
    with pytest.raises(InvalidRequest, match="not saved"):
        client.Job.objects.bulk_update([echo.submit("w", words="x", save=False)])


def test_too_large_arguments_name_the_limit(divide: Any) -> None:
    with pytest.raises(TooLarge, match="524288"):
        divide.submit("w", x=b"\xff" * 2_000_000)


def test_resolve_workdir(echo: Any) -> None:
    assert echo.submit("a/b", words="x", save=False).resolve_workdir("/site/data") == Path("/site/data/a/b")


def test_a_repr_helps(echo: Any) -> None:
    job = echo.submit("w", words="x", tags={"a": "b"}, save=False)
    assert "workdir='w'" in repr(job)
    job.save()
    assert repr(job).startswith(f"Job(id={job.id}, app_id={job.app_id}, state='PREPROCESSED', workdir='w'")
    assert "return_code" not in repr(job)


def test_submit_takes_what_job_takes() -> None:
    named = set(inspect.signature(Job.__init__).parameters) - {"self", "fields", "site_name", "app_id", "app_name"}
    assert named == {"workdir"}  # all others are JOB_FIELDS, which submit sorts out


def test_get_of_none_and_of_several(echo: Any, client: Client) -> None:
    for _ in range(2):
        echo.submit("same", words="x")
    with pytest.raises(client.Job.MultipleObjectsReturned, match="workdir=same"):
        client.Job.objects.get(site=echo.site, workdir="same")
    with pytest.raises(Job.DoesNotExist, match="workdir=other"):
        client.Job.objects.get(site=echo.site, workdir="other")
    assert issubclass(Job.DoesNotExist, DoesNotExist)
    assert Job.DoesNotExist is client.Job.DoesNotExist
    assert not issubclass(Site.DoesNotExist, Job.DoesNotExist)
