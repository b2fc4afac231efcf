"""A real service for all API tests of one worker; every test has its own user-visible corner: a site of its own."""

from __future__ import annotations

import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from balsam_exec.api import ApplicationDefinition, Client, Site
from balsam_exec.apps.payload import dump, dump_exception, load_app, load_arguments
from balsam_exec.apps.templates import render
from balsam_exec.client.service import Service
from balsam_exec.model.base import now
from balsam_exec.model.errors import ServiceUnavailable
from balsam_exec.model.jobs import Result
from balsam_exec.model.sessions import AcquireRequest, LeasedJob, Report, SessionSpec
from balsam_exec.model.states import JobState
from tests.support.services import LiveService
from tests.support.warm import Template


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def live(
    request: pytest.FixtureRequest, template: Template, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveService]:
    directory = tmp_path_factory.mktemp("api-service")
    with ExitStack() as stack:
        database = f"sqlite:///{directory / 'balsam.db'}"
        if request.param == "postgresql":
            database = stack.enter_context(request.getfixturevalue("postgres").database())
        yield stack.enter_context(LiveService(database, directory, template=template))


@pytest.fixture
def service(live: LiveService) -> Iterator[Service]:
    service = Service(live.url, live.token, deadline=10)
    yield service
    service.close()


@pytest.fixture
def client(service: Service) -> Client:
    return Client(service)


@pytest.fixture
def configured(live: LiveService, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration names this service, and the test's site as the default one."""
    monkeypatch.setenv("BALSAM_URL", live.url)
    monkeypatch.setenv("BALSAM_TOKEN", live.token)
    monkeypatch.setenv("BALSAM_SITE", site.name)


@pytest.fixture
def site(client: Client) -> Site:
    return client.Site.objects.create(name=f"site-{uuid.uuid4().hex}", path="/tmp/nowhere")


class Echo(ApplicationDefinition):
    """Says something."""

    command_template = "echo {{ words }} {{ more }}; exit {{ code }}"
    parameters = {
        "more": {"required": False, "default": "", "help": "Anything else."},
        "code": {"required": False, "default": "0"},
    }


class Divide(ApplicationDefinition):
    """Divides."""

    def run(self, x: float, y: float = 1) -> float:
        return x / y


@pytest.fixture
def echo(site: Site) -> type[Echo]:
    return type("Echo", (Echo,), {"site": site, "__doc__": Echo.__doc__})


@pytest.fixture
def divide(site: Site) -> type[Divide]:
    return type("Divide", (Divide,), {"site": site})


class MiniLauncher:
    """Runs the jobs of one site in a thread, one after another, through the calls a launcher uses."""

    def __init__(self, service: Service, site_id: int) -> None:
        self._service = service.sibling()
        self._session = self._service.open_session(SessionSpec(site_id=site_id)).id
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._service.close()
        self._thread.join(20)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        request = AcquireRequest(max_jobs=100, max_nodes=1, timeout=30)
        while not self._stopped.is_set():
            try:
                for job in self._service.acquire(self._session, request):
                    self._work(job)
            except ServiceUnavailable:
                if not self._stopped.is_set():
                    raise

    def _work(self, job: LeasedJob) -> None:
        result = self._result(job)
        end = JobState.RUN_DONE if result.ok else JobState.RUN_ERROR
        data = {"return_code": result.return_code}
        running = Report(job_id=job.id, epoch=job.epoch, state=JobState.RUNNING, timestamp=now())
        over = Report(job_id=job.id, epoch=job.epoch, state=end, timestamp=now(), data=data, result=result)
        self._service.report(self._session, [running, over])

    def _result(self, job: LeasedJob) -> Result:
        app = self._service.app(job.app_id)
        if app.command_template is not None:
            command = render(app.command_template, app.parameters, job.parameters)
            done = subprocess.run(["sh", "-c", command], stdout=subprocess.PIPE, text=True)
            code = done.returncode
            return Result(
                ok=not code, reason="exit" if code else "", return_code=code, error=done.stdout if code else ""
            )
        assert app.payload is not None
        assert job.arguments is not None
        args, kwargs = load_arguments(job.arguments)
        try:
            value = load_app(app.payload, ApplicationDefinition)(None).run(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 that is what a launcher does
            exception, text = dump_exception(error)
            return Result(ok=False, exception=exception, error=text, reason="exception", return_code=1)
        return Result(ok=True, value=dump(value), return_code=0)


@pytest.fixture
def launch(service: Service) -> Iterator[Callable[[Any], MiniLauncher]]:
    """`launch(site)` starts to run the site's jobs."""
    with ExitStack() as stack:

        def start(site: Site) -> MiniLauncher:
            launcher = MiniLauncher(service, site.id)
            stack.callback(launcher.stop)
            return launcher

        yield start


@pytest.fixture
def workdir(tmp_path: Path) -> str:
    return f"test/{tmp_path.name}"
