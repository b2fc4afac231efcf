"""What `pip install` gives: the public names, a cheap import, a complete wheel."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
import zipfile
from email.parser import HeaderParser
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import balsam_exec

ROOT = Path(__file__).parents[2]

PUBLIC = {
    "balsam_exec": {
        "ApplicationDefinition",
        "BalsamPoolExecutor",
        "BatchJob",
        "EventLog",
        "Job",
        "Site",
        "__version__",
        "current_job",
    },
    "balsam_exec.api": {
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
    },
}
#: What `import balsam_exec` must not load: each costs more than all of it may.
HEAVY = {
    "pydantic",
    "requests",
    "sqlalchemy",
    "fastapi",
    "uvicorn",
    "typer",
    "jinja2",
    "dill",
    "cloudpickle",
    "asyncio",
}
IMPORT_LIMIT_SEC = 0.050


def run_python(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.mark.parametrize("module", PUBLIC)
def test_the_public_names_are_these(module: str) -> None:
    namespace = __import__(module, fromlist=["*"])
    assert set(namespace.__all__) == PUBLIC[module]
    assert sorted(namespace.__all__) == list(namespace.__all__)
    for name in namespace.__all__:
        assert getattr(namespace, name) is not None
    assert set(dir(namespace)) >= PUBLIC[module]


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        balsam_exec.Nothing  # noqa: B018


def test_the_import_loads_nothing_heavy() -> None:
    loaded = json.loads(run_python("import balsam_exec, json, sys; print(json.dumps(list(sys.modules)))"))
    assert not HEAVY & set(loaded)
    assert [name for name in loaded if name.startswith("balsam_exec.")] == ["balsam_exec._version"]


def test_the_import_takes_under_50_ms() -> None:
    code = "import time; t = time.perf_counter(); import balsam_exec; print(time.perf_counter() - t)"
    assert min(float(run_python(code)) for _ in range(5)) < IMPORT_LIMIT_SEC


def test_the_command_is_installed() -> None:
    (command,) = entry_points(group="console_scripts", name="balsam")
    assert callable(command.load())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    directory = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(directory)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=60)
    (path,) = directory.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_has_the_whole_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    here = {str(p.relative_to(ROOT)) for p in (ROOT / "balsam_exec").rglob("*") if p.is_file()}
    sources = {name for name in here if "__pycache__" not in name}
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert shipped == sources
    assert "balsam_exec/py.typed" in shipped
    assert any(name.startswith("balsam_exec/server/migrations/versions/") for name in shipped)


def test_the_wheel_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    metadata = HeaderParser().parsestr(wheel.read(name).decode())
    assert metadata["Name"] == "balsam-exec"
    assert metadata["Version"] == balsam_exec.__version__
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "BSD-3-Clause"
    extras = set(metadata.get_all("Provides-Extra"))
    assert extras == {"postgres", "libensemble", "parsl", "mpi", "globus", "dashboard", "demo", "all"}


def test_every_dependency_has_a_lower_bound_and_no_upper_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [spec for name, specs in project["optional-dependencies"].items() if name != "all" for spec in specs]
    for spec in [*project["dependencies"], *extras]:
        assert ">=" in spec, spec
        assert not set("<~!,") & set(spec), spec
