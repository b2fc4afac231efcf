"""ApplicationDefinition: what is checked and when, sync, submit, loading; the examples of seed 001."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from balsam_exec.api import App, ApplicationDefinition, Client, Job, Site
from balsam_exec.apps import definition
from balsam_exec.model.apps import ParameterSpec
from balsam_exec.model.errors import DoesNotExist, InvalidRequest, ParameterError, PayloadError

pytestmark = pytest.mark.usefixtures("configured")


def test_the_sleeper_of_the_seed(site: Site) -> None:
    class Sleeper(ApplicationDefinition):
        site = None
        command_template = "sleep {{ sleeptime }} && echo goodbye"

    Sleeper.site = site.name
    job = Sleeper.submit(workdir="test/sleep_3", sleeptime=3)
    Sleeper.sync()
    same = Job(workdir="test/sleep_3", app_id=Sleeper, parameters={"sleeptime": 3})
    same.save()
    assert (job.app_id, job.parameters, job.workdir) == (same.app_id, same.parameters, same.workdir)
    jobs = [Sleeper.submit(workdir=f"test/{i}", sleeptime=3, save=False) for i in range(100)]
    jobs = Job.objects.bulk_create(jobs)
    assert Job.objects.filter(app_id=Sleeper).count() == 102
    assert isinstance(jobs[0], Job)


def test_the_adder_of_the_seed(site: Site, launch: Any) -> None:
    launch(site)

    class Adder(ApplicationDefinition):
        def run(self, x: int, y: int) -> int:
            return x + y

    Adder.site = site.id
    assert Adder.submit("test/5plus5", x=5, y=5).result(timeout=20) == 10


def test_a_spread_parameter_takes_a_list(site: Site, launch: Any) -> None:
    launch(site)

    class Dims(ApplicationDefinition):
        def run(self, first: int = 1, *dims: int, scale: int = 1, **more: int) -> Any:
            return first, dims, scale, more

    Dims.site = site
    job = Dims.submit(workdir="w", dims=[5, 6], ranks_per_node=1, depth=2)
    assert job.result(timeout=20) == (1, (5, 6), 1, {"depth": 2})
    assert job.parameters == {"first": 1, "dims": [5, 6], "scale": 1, "depth": 2}
    with pytest.raises(ParameterError, match="takes a list"):
        Dims.submit("w", dims=5)


def test_everything_declared_is_registered(site: Site) -> None:
    class MySimulation(ApplicationDefinition):
        """
        Some description
            of the app
        """

        environment_variables = {"HDF5_USE_FILE_LOCKING": "FALSE"}
        command_template = "/path/to/sim.exe --mode {{ mode }} -inp {{ input_filename }}"
        parameters = {
            "input_filename": {"required": True},
            "mode": {"required": False, "default": "explore", "help": "The simulation mode"},
        }
        transfers = {
            "input_file": {"required": True, "direction": "in", "local_path": "input.nw", "description": "Input Deck"}
        }
        cleanup_files = ["*.hdf", "*.h5"]
        python_exe = "/usr/bin/python3"
        container = "apptainer exec --nv 'an image.sif'"
        isolation = "process"

        def preprocess(self) -> None:
            self.job.state = "PREPROCESSED"

        def shell_preamble(self) -> str:
            return "module load conda"

        def parse(self) -> None:
            """A helper, no hook."""

    MySimulation.site = site
    assert MySimulation.__app_id__ is None
    MySimulation.sync()
    app = App.objects.get(id=MySimulation.__app_id__)
    assert app.description == "Some description\n    of the app"
    assert (app.site_id, app.name) == (site.id, "MySimulation")
    assert app.command_template == MySimulation.command_template
    assert app.parameters["mode"] == ParameterSpec(required=False, default="explore", help="The simulation mode")
    assert app.environment_variables == {"HDF5_USE_FILE_LOCKING": "FALSE"}
    assert app.transfers["input_file"].local_path == "input.nw"
    assert (app.cleanup_files, app.python_exe, app.isolation) == (["*.hdf", "*.h5"], "/usr/bin/python3", "process")
    assert app.container == "apptainer exec --nv 'an image.sif'"
    assert app.hooks == ["shell_preamble", "preprocess"]


def test_sync_again_replaces(site: Site) -> None:
    def version(template: str) -> Any:
        return type("Tool", (ApplicationDefinition,), {"site": site, "command_template": template})

    old, new = version("echo {{ a }}"), version("echo {{ b }}")
    old.sync()
    new.sync()
    assert old.__app_id__ == new.__app_id__
    with pytest.raises(ParameterError, match="unknown: a"):
        Job("w", "Tool", site, parameters={"a": 1}).save()
    Job("w", "Tool", site, parameters={"b": 1}).save()


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"command_template": "x", "run": lambda self: 1}, "exactly one"),
        ({"command_template": "echo {{ a-b }}"}, "identifier"),
        ({"command_template": "echo {{ a"}, "template"),
        ({"command_template": "echo {{ a }}", "parameters": {"b": {}}}, "has b, which"),
        ({"command_template": "echo {{ a }}", "parameters": {"a-b": {}}}, "'a-b' is not an identifier"),
        ({"command_template": "echo {{ a }}", "parameters": {"a": {"required": False}}}, "default"),
        ({"command_template": "echo {{ a }}", "parameters": {"a": {"default": "x"}}}, "required"),
        ({"command_template": "echo {{ a }}", "parameters": {"a": {"requird": True}}}, "requird"),
        ({"run": lambda self: 1, "parameters": {"a": {}}}, "no command_template|there is none"),
        ({"command_template": "x", "container": "apptainer exec 'image.sif"}, "no command line: No closing quotation"),
        ({"command_template": "x", "container": "apptainer exec \0"}, "no NUL"),
        ({"command_template": "x", "container": " "}, "names no program"),
        ({"command_template": "x", "container": ["apptainer"]}, "must be text"),
        ({"command_template": "x", "environment_variables": {"A": 1}}, "str to str"),
        ({"command_template": "x", "environment_variables": ["A"]}, "mapping"),
        ({"command_template": "x", "environment_variables": {"A=B": "1"}}, "'A=B' is no name of a variable"),
        ({"command_template": "x", "transfers": ({"a": {}},)}, "comma"),
        ({"command_template": "x", "transfers": {"a": {"direction": "up", "local_path": "."}}}, "direction"),
        ({"command_template": "x", "cleanup_files": "*.h5"}, "list"),
        ({"command_template": "x", "cleanup_files": ["*.h5", "/etc/*"]}, "'/etc/\\*' is no glob relative"),
        ({"command_template": "x", "cleanup_files": ["a/../../b"]}, "no glob relative"),
        ({"command_template": "x", "cleanup_files": [3]}, "no glob relative"),
        ({"command_template": "x", "isolation": "planet"}, "worker, process"),
    ],
)
def test_a_wrong_definition_is_told_at_the_class_statement(attributes: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        type("Bad", (ApplicationDefinition,), attributes)


def test_a_base_without_command_or_run_is_fine_until_it_is_used(site: Site) -> None:
    class Base(ApplicationDefinition):
        environment_variables = {"A": "1"}

    class Real(Base):
        command_template = "true"

    Base.site = Real.site = site
    Real.sync()
    with pytest.raises(InvalidRequest, match="neither"):
        Base.sync()
    with pytest.raises(InvalidRequest, match="exactly one"):
        type("Both", (Real,), {"run": lambda self: 1})


def test_a_site_is_needed_and_may_be_a_name_an_id_or_an_object(site: Site) -> None:
    class NoSite(ApplicationDefinition):
        command_template = "true"

    with pytest.raises(InvalidRequest, match="needs a site"):
        NoSite.sync()
    ids = set()
    for given in (site.name, site.id, site):
        NoSite.site = given
        NoSite.sync()
        ids.add(NoSite.__app_id__)
    assert len(ids) == 1
    NoSite.site = "atlantis"
    with pytest.raises(DoesNotExist, match="you have: site-"):
        NoSite.sync()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "missing: words"),
        ({"words": "x", "volume": 3}, "unknown: volume"),
        ({"words": object()}, "not JSON"),
        ({"words": float("inf")}, "not JSON"),
    ],
)
@pytest.mark.parametrize("synced", [False, True])
def test_wrong_parameters_of_a_command(echo: Any, given: dict[str, Any], said: str, synced: bool) -> None:
    if synced:
        echo.sync()
    for save in (True, False):
        with pytest.raises(ParameterError, match=said):
            echo.submit("w", save=save, **given)
    assert App.objects.filter(site=echo.site).count() == synced  # nothing was sent before


@pytest.mark.parametrize(("given", "said"), [({}, "missing: x"), ({"x": 1, "z": 2}, "unknown: z")])
def test_wrong_parameters_of_run(divide: Any, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ParameterError, match=said):
        divide.submit("w", **given)


def test_an_argument_that_cannot_travel(divide: Any) -> None:
    with pytest.raises(PayloadError, match="generator"):
        divide.submit("w", x=(i for i in range(3)))
    assert Job.objects.filter(site=divide.site).count() == 0


def test_paths_are_text_in_a_command(echo: Any) -> None:
    assert echo.submit("w", words=Path("/a b")).parameters == {"words": "/a b"}


def test_a_parameter_named_like_a_field_of_job(site: Site) -> None:
    class Load(ApplicationDefinition):
        command_template = "load {{ data }} {{ other }}"

    Load.site = site
    with pytest.raises(ParameterError, match=r'parameters=\{"data": ...\}'):
        Load.submit("w", data="x", other="y")
    job = Load.submit("w", other="y", parameters={"data": "x"}, data={"mine": 1})
    assert (job.parameters, job.data) == ({"data": "x", "other": "y"}, {"mine": 1})


def test_apps_can_be_loaded_and_used_without_their_code(echo: Any, divide: Any, site: Site, launch: Any) -> None:
    echo.sync()
    divide.sync()
    for where in (site.name, site.id, site):
        apps = ApplicationDefinition.load_by_site(where)
        assert set(apps) == {"Echo", "Divide"}
        assert apps["Echo"].__doc__ == "Says something."
        assert apps["Echo"].__app_id__ == echo.__app_id__
    with pytest.raises(ParameterError, match="missing: words"):
        apps["Echo"].submit("w")
    launch(site)
    assert apps["Echo"].submit("w", words="x").result(timeout=20) is None
    job = apps["Divide"].submit("w", x=9, y=3)
    assert job.result(timeout=20) == 3
    assert Job.objects.get(id=job.id).parameters == {"x": 9, "y": 3}
    with pytest.raises(TypeError, match="z"):
        apps["Divide"].submit("w", z=9).result(timeout=20)


def test_a_loaded_app_is_not_registered_without_its_methods(echo: Any, site: Site) -> None:
    class Careful(ApplicationDefinition):
        command_template = "true"

        def handle_error(self) -> None:
            self.job.state = "RESTART_READY"

    Careful.site = site
    for app in (Careful, echo):
        app.sync()
    before = App.objects.get(name="Careful", site=site)
    apps = ApplicationDefinition.load_by_site(site)
    with pytest.raises(InvalidRequest, match=r"without the code of handle_error: sync it where it is defined"):
        apps["Careful"].sync()
    assert apps["Careful"].submit("w").app_id == before.id
    apps["Echo"].sync()
    assert {app.name: app.digest for app in App.objects.filter(site=site)}["Careful"] == before.digest


def test_renaming(echo: Any, site: Site) -> None:
    job = echo.submit("w", words="x")
    echo.rename("Parrot")
    assert set(ApplicationDefinition.load_by_site(site)) == {"Parrot"}
    assert echo.submit("w", words="y").app_id == job.app_id
    echo.sync()
    assert echo.__app_id__ == job.app_id


def test_an_app_can_be_deleted(echo: Any, site: Site) -> None:
    echo.sync()
    App.objects.get(site=site, name="Echo").delete()
    assert App.objects.filter(site=site).count() == 0
    with pytest.raises(InvalidRequest, match="create"):
        App.objects.create(name="Echo")


def test_what_is_remembered_of_a_sync_does_not_travel(divide: Any) -> None:
    first = definition.app_spec(divide, 1, ApplicationDefinition).payload
    divide.sync()
    assert definition.app_spec(divide, 1, ApplicationDefinition).payload == first


def test_a_payload_holds_no_credentials(client: Client, divide: Any) -> None:
    payload = definition.app_spec(divide, 1, ApplicationDefinition).payload
    assert payload is not None
    token = client.service._token
    assert token is not None
    assert token.encode() not in payload
