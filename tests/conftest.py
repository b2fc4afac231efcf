"""Fixtures for every test: a real PostgreSQL, real services, and the proof that nothing was left running."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from balsam_exec.embedded import Deployment
from tests.support.postgres import PostgresServer
from tests.support.processes import MARKER, reap_leftovers
from tests.support.services import LiveService
from tests.support.slurm import SlurmCluster, missing
from tests.support.warm import Template

# A busy machine is no failure of a property.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

CONFIGURATION = ("BALSAM_HOME", "BALSAM_URL", "BALSAM_TOKEN", "BALSAM_SITE")


@pytest.fixture(scope="session", autouse=True)
def nothing_left_running() -> Iterator[None]:
    """Fail the last test of this worker if a process that its tests started is still alive after all fixtures."""
    marker = os.environ[MARKER] = uuid.uuid4().hex
    yield
    left = reap_leftovers(marker)
    assert not left, "tests left processes running:\n" + "\n".join(map(str, left))


@pytest.fixture(autouse=True)
def balsam_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """$BALSAM_HOME of this test: a fresh directory; no configuration of the person who runs the tests is seen."""
    for name in CONFIGURATION:
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "balsam"
    monkeypatch.setenv("BALSAM_HOME", str(home))
    return home


@pytest.fixture(scope="session")
def postgres(nothing_left_running: None) -> Iterator[PostgresServer]:
    """A PostgreSQL server, one for each test worker, started when the first test asks for it."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[str]:
    """The URL of an empty PostgreSQL database of this test's own."""
    with postgres.database() as url:
        yield url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The URL of an SQLite database of this test's own; the file does not exist yet."""
    return f"sqlite:///{tmp_path / 'balsam.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """An empty database of this test's own, on each kind of database in turn."""
    url: str = request.getfixturevalue({"sqlite": "sqlite_url", "postgresql": "postgres_url"}[request.param])
    return url


@pytest.fixture(scope="session")
def slurm_cluster(nothing_left_running: None) -> Iterator[SlurmCluster]:
    """A Slurm of four nodes, one for each test worker, started when the first test asks for it."""
    if reason := missing():
        pytest.skip(f"Slurm is not installed, {reason}")
    with SlurmCluster() as cluster:
        yield cluster


@pytest.fixture
def slurm(slurm_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """That Slurm, all idle, as the one of this machine: the test and what it starts reach it by its commands."""
    for name, value in slurm_cluster.environment.items():
        monkeypatch.setenv(name, value)
    yield slurm_cluster
    slurm_cluster.clear()


@pytest.fixture(scope="session")
def template(nothing_left_running: None) -> Iterator[Template]:
    """What services are forked from, one for each test worker, started when the first test asks for it."""
    with closing(Template()) as template:
        yield template


@pytest.fixture
def start_service(
    template: Template, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], LiveService]]:
    """Start services: `start_service(database_url)` gives a running LiveService; all are stopped at the end."""
    with ExitStack() as stack:
        yield lambda url: stack.enter_context(LiveService(url, tmp_path_factory.mktemp("service"), template=template))


@pytest.fixture
def live_service(start_service: Callable[[str], LiveService], database_url: str) -> LiveService:
    """The real service in a process of its own, on each kind of database in turn."""
    return start_service(database_url)


@pytest.fixture(scope="module")
def module_deployment(tmp_path_factory: pytest.TempPathFactory, nothing_left_running: None) -> Iterator[Deployment]:
    """A deployment as `balsam up` makes it."""
    with Deployment.start(tmp_path_factory.mktemp("home")) as deployment:
        yield deployment


@pytest.fixture
def deployment(module_deployment: Deployment, balsam_home: Path, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    """A configured service with a local site, shared by the tests of the module."""
    monkeypatch.setenv("BALSAM_HOME", str(module_deployment.home))
    return module_deployment
