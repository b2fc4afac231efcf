"""Files of jobs, from end to end: a launcher writes them, and they are read as from another machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from balsam_exec.api import Client, Job
from balsam_exec.embedded import Deployment
from balsam_exec.model.apps import AppSpec, ParameterSpec
from balsam_exec.model.batch_jobs import BatchJobSpec
from balsam_exec.model.errors import InvalidRequest, JobFailed, NotFound
from balsam_exec.model.sites import SitePatch
from tests.support.processes import wait_until

#: It says what it is told, and goes on when the file `go` is there.
COMMAND = "echo start {{ word }}; echo oops >&2; for i in $(seq 600); do test -e go && break; sleep 0.05; done; exit 3"


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, nothing_left_running: None) -> Iterator[Deployment]:
    with Deployment.start(tmp_path_factory.mktemp("home"), temporary=True) as deployment:
        service = deployment.service()
        app = AppSpec(
            site_id=deployment.site_id, name="Say", command_template=COMMAND, parameters={"word": ParameterSpec()}
        )
        service.put_app(app)
        service.create_batch_job(BatchJobSpec(site_id=deployment.site_id, num_nodes=1, wall_time_min=10))
        yield deployment
        service.close()


@pytest.fixture
def client(deployment: Deployment) -> Iterator[Client]:
    service = deployment.service()
    yield Client(service)
    service.close()


@pytest.fixture
def away(deployment: Deployment, client: Client) -> Iterator[None]:
    """The site is on another machine, as far as the service knows."""
    client.service.patch_site(deployment.site_id, SitePatch(hostname="elsewhere"))
    yield
    client.service.patch_site(deployment.site_id, SitePatch(hostname=socket.gethostname()))


def say(client: Client, workdir: str, **fields: str) -> Job:
    job = client.Job(workdir, "Say", parameters={"word": workdir}, **fields)
    job.save()
    return job


def let_go(deployment: Deployment, job: Job) -> None:
    (deployment.home / "site/data" / job.workdir / "go").touch()


def printed(job: Job, path: str = "") -> bytes:
    try:
        return job.read_file(path)
    except NotFound:
        return b""


@pytest.mark.usefixtures("away")
def test_a_running_job_s_files_are_read_through_the_service(deployment: Deployment, client: Client) -> None:
    job = say(client, "away/1", stdout="logs/out", stderr="logs/err")
    with pytest.raises(NotFound, match="yet"):
        job.read_file("never")
    wait_until(lambda: printed(job, "logs/err") == b"oops\n", 60, "the job's stderr")
    assert job.read_file() == b"start away/1\n"
    assert job.read_file(offset=-3, length=2) == b"/1"
    with pytest.raises(InvalidRequest, match="relative"):
        job.read_file("../../../settings.yml")
    let_go(deployment, job)
    with pytest.raises(JobFailed, match="exit code 3\noops"):
        job.result(60)
    with pytest.raises(NotFound, match=r"no file job\.out"):
        job.read_file("job.out")


def test_on_this_machine_the_disk_is_read(deployment: Deployment, client: Client) -> None:
    job = say(client, "near/1")
    let_go_when_there(deployment, job)
    with pytest.raises(JobFailed):
        job.result(60)
    client.service.read_file = None  # type: ignore[assignment,method-assign]
    assert job.read_file() == b"start near/1\noops\n"


def let_go_when_there(deployment: Deployment, job: Job) -> None:
    wait_until(lambda: (deployment.home / "site/data" / job.workdir / "job.out").exists(), 60, "the job")
    let_go(deployment, job)


@pytest.mark.usefixtures("away")
def test_the_command_line_follows(deployment: Deployment, client: Client) -> None:
    job = say(client, "follow/1")
    command = [sys.executable, "-m", "balsam_exec.cli", "job", "logs", str(job.id), "--follow"]
    environment = {**os.environ, "BALSAM_HOME": str(deployment.home)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"start follow/1\n"
        assert process.stdout.readline() == b"oops\n"
        assert process.poll() is None
        let_go(deployment, job)
        assert process.stdout.read() == b""
        assert (process.wait(30), process.stderr.read()) == (0, b"")
    assert Path(deployment.home / "site/data/follow/1/job.out").read_bytes() == b"start follow/1\noops\n"
