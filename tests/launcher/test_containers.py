"""Apps in containers, by a stand-in for what starts them: it notes its words and becomes what follows them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from balsam_exec.apps import payload
from balsam_exec.model.states import JobState
from tests.launcher.conftest import Running
from tests.launcher.fake_service import FakeService

Launch = Callable[..., Running]

STAND_IN = """\
#!/bin/sh
echo "$@" >> {log}
image=$3
shift 3
IMAGE="$image" exec "$@"
"""


@pytest.fixture
def container(tmp_path: Path) -> str:
    """A command line with a blank in a word."""
    program = tmp_path / "a container/run"
    program.parent.mkdir()
    program.write_text(STAND_IN.format(log=shlex.quote(str(tmp_path / "log"))))
    program.chmod(0o755)
    return f"{shlex.quote(str(program))} exec --nv image.sif"


def noted(tmp_path: Path) -> list[str]:
    return (tmp_path / "log").read_text().splitlines()


def image() -> tuple[str | None, int]:
    return os.environ.get("IMAGE"), os.getpid()


def value(service: FakeService, job_id: int) -> Any:
    service.wait([job_id])
    return payload.load_result(service.results[job_id])


@pytest.mark.parametrize("command", ["printenv IMAGE", "cd . && x=$IMAGE; echo ${x}"])
def test_a_command_runs_in_its_container(
    service: FakeService, launch: Launch, tmp_path: Path, container: str, command: str
) -> None:
    launch()
    job_id = service.add_job(service.add_app(command_template=command, container=container))
    service.wait([job_id])
    assert service.state[job_id] is JobState.RUN_DONE, service.results[job_id].error
    assert (tmp_path / "data/job1/job.out").read_text() == "image.sif\n"
    assert len(noted(tmp_path)) == 1


def test_each_rank_of_a_command_has_a_container(
    service: FakeService, launch: Launch, tmp_path: Path, container: str
) -> None:
    launch()
    app = service.add_app(command_template="echo $IMAGE {{ x }}", parameters={"x": {}}, container=container)
    job_id = service.add_job(app, ranks_per_node=2, parameters={"x": "a'b"})
    service.wait([job_id])
    assert (tmp_path / "data/job1/job.out").read_text() == "image.sif a'b\n" * 2
    assert len(noted(tmp_path)) == 2


def test_a_worker_lives_in_its_container(service: FakeService, launch: Launch, tmp_path: Path, container: str) -> None:
    launch(cores=1)
    code, call = payload.call_app(1).payload, payload.dump_call(image, (), {})
    inside = service.add_app(hooks=["run"], payload=code, container=container)
    other = service.add_app(hooks=["run"], payload=code, container=container.replace("image", "other"))
    bare = service.add_app(hooks=["run"], payload=code)
    first, second, third, fourth = (
        value(service, service.add_job(app, arguments=call)) for app in (inside, inside, other, bare)
    )
    assert first == second
    assert (first[0], third[0], fourth[0]) == ("image.sif", "other.sif", None)
    assert len({first[1], third[1], fourth[1]}) == 3
    assert len(noted(tmp_path)) == 2


def test_each_rank_of_a_function_has_a_container(
    service: FakeService, launch: Launch, tmp_path: Path, container: str
) -> None:
    launch()
    app = service.add_app(hooks=["run"], payload=payload.call_app(1).payload, container=container)
    found = value(service, service.add_job(app, arguments=payload.dump_call(image, (), {}), ranks_per_node=2))
    assert found[0] == "image.sif"
    assert len(noted(tmp_path)) == 2


def test_a_container_that_cannot_be_started(service: FakeService, launch: Launch) -> None:
    launch()
    job_id = service.add_job(service.add_app(command_template="true", container="/no/apptainer exec image.sif"))
    service.wait([job_id])
    assert service.state[job_id] is JobState.RUN_ERROR
    assert "No such file or directory /no/apptainer" in service.results[job_id].error
