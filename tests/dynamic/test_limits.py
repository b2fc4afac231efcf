"""The size of what is serialized: the service's limit holds for each kind of entity, exactly, and its errors help."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from balsam_exec import ApplicationDefinition, BalsamPoolExecutor
from balsam_exec.apps import payload
from balsam_exec.apps.definition import app_spec
from balsam_exec.client.service import Service
from balsam_exec.embedded import Deployment
from balsam_exec.model.apps import AppSpec, ParameterSpec
from balsam_exec.model.base import MAX_ENTITY, MIN_ENTITY_LIMIT, now
from balsam_exec.model.errors import JobFailed, TooLarge
from balsam_exec.model.jobs import JobPatch, JobSpec, Result
from balsam_exec.model.sessions import AcquireRequest, Report, SessionSpec
from balsam_exec.model.sites import SiteSpec
from balsam_exec.model.states import JobState

LIMIT = 100_000
DEADLINE = 60
#: Names the entity, its size and the limit, and says what to do.
REFUSAL = r"{what} has {size} bytes serialized and the limit is {limit}: keep large data in files .* or use transfers"


@pytest.fixture(scope="module")
def module_deployment(tmp_path_factory: pytest.TempPathFactory, nothing_left_running: None) -> Iterator[Deployment]:
    """With a limit of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BALSAM_SERVER_MAX_ENTITY", str(LIMIT))
        with Deployment.start(tmp_path_factory.mktemp("home")) as deployment:
            yield deployment


@pytest.fixture
def api(deployment: Deployment) -> Service:
    return deployment.service()


def refused(what: str, size: int = LIMIT + 1, limit: int = LIMIT) -> Any:
    return pytest.raises(TooLarge, match=REFUSAL.format(what=what, size=size, limit=limit))


def sized(make: Callable[[int], bytes], size: int) -> int:
    """The n for which `make(n)`, something serialized with n bytes in it, has this size."""
    n = size - (len(make(size)) - size)
    assert len(make(n)) == size
    return n


def _exception_overhead() -> int:
    """Bytes of a serialized ValueError beside those in it, where nobody (tblib) has taught pickle more."""
    code = "from balsam_exec.apps import payload; print(len(payload.dump(ValueError(bytes(90_000)))) - 90_000)"
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60).stdout)


def arguments(n: int) -> bytes:
    return payload.dump_arguments((), {"block": bytes(n)})


class Length(ApplicationDefinition):
    site = "local"

    def run(self, block: bytes) -> int:
        return len(block)


class Make(ApplicationDefinition):
    """A value, or an exception, of that many bytes."""

    site = "local"

    def run(self, size: int, fail: bool = False) -> bytes:
        if fail:
            raise ValueError(bytes(size))
        return bytes(size)


def constant(n: int) -> Any:
    """An app with n bytes of its own."""
    table = bytes(n)
    return type("Constant", (ApplicationDefinition,), {"site": "local", "run": lambda self: len(table)})


def test_the_client_learns_the_limit(api: Service) -> None:
    assert api.max_entity == LIMIT
    assert MIN_ENTITY_LIMIT < LIMIT < MAX_ENTITY == 512 * 1024


def test_what_is_small_needs_no_question() -> None:
    away = Service("http://127.0.0.1:1", "token", deadline=0)
    away.check_entity(bytes(MIN_ENTITY_LIMIT), "something")


@pytest.mark.usefixtures("allocation")
def test_arguments() -> None:
    most = sized(arguments, LIMIT)
    with refused("the arguments of a job in w"):
        Length.submit("w", block=bytes(most + 1))
    job = Length.submit("w", block=bytes(most))
    assert job.result(DEADLINE) == most
    waiting = Length.submit("w", block=b"", num_nodes=1000)
    waiting.parameters["block"] = bytes(most + 1)
    with refused("the arguments of a job in w"):
        waiting.save()


def test_an_app(api: Service) -> None:
    def code(n: int) -> bytes:
        found = app_spec(constant(n), 1, ApplicationDefinition).payload
        assert found is not None
        return found

    most = sized(code, LIMIT)
    with refused("the app Constant"):
        constant(most + 1).sync()
    constant(most).sync()


@pytest.mark.usefixtures("allocation")
def test_a_result() -> None:
    most = sized(lambda n: payload.dump(bytes(n)), LIMIT)
    assert len(Make.submit("w", size=most).result(DEADLINE)) == most
    with refused("the result"):
        Make.submit("w", size=most + 1).result(DEADLINE)


@pytest.mark.usefixtures("allocation")
def test_an_exception() -> None:
    most = LIMIT - _exception_overhead()
    with pytest.raises(ValueError) as caught:
        Make.submit("w", size=most, fail=True).result(DEADLINE)
    assert len(caught.value.args[0]) == most
    with pytest.raises(JobFailed, match=f"the exception has {LIMIT + 1} bytes serialized and the limit is {LIMIT}"):
        Make.submit("w", size=most + 1, fail=True).result(DEADLINE)


@pytest.mark.usefixtures("allocation")
def test_what_a_hook_sets() -> None:
    class Hoarder(ApplicationDefinition):
        site = "local"
        command_template = "true"

        def postprocess(self) -> None:
            self.job.data = {"x": "y" * int(self.job.tags["size"])}
            self.job.state = "POSTPROCESSED"

    small, large = (Hoarder.submit("w", tags={"size": str(size)}) for size in (LIMIT - 8, LIMIT))
    small.result(DEADLINE)
    with pytest.raises(JobFailed, match=f"the data of job {large.id} has {LIMIT + 8} bytes .* the limit is {LIMIT}"):
        large.result(DEADLINE)


@pytest.mark.usefixtures("allocation")
def test_calls_of_an_executor() -> None:
    with BalsamPoolExecutor(2) as pool:
        with refused("the arguments", r"\d+"):
            pool.submit(len, bytes(LIMIT)).result(DEADLINE)
        with refused("the function", r"\d+"):
            table = bytes(LIMIT)
            pool.submit(lambda: len(table)).result(DEADLINE)
        assert pool.submit(len, bytes(LIMIT - 1000)).result(DEADLINE) == LIMIT - 1000


# --- what does not come from our own client


@pytest.fixture
def tool(api: Service) -> int:
    site = api.sites(name="local").results[0].id
    spec = AppSpec(site_id=site, name="Tool", command_template="echo {{ x }}", parameters={"x": ParameterSpec()})
    return api.put_app(spec).id


@pytest.fixture
def python(api: Service) -> int:
    site = api.sites(name="local").results[0].id
    return api.put_app(AppSpec(site_id=site, name="Python", hooks=["run"], payload=b"x" * LIMIT)).id


def text(what: str, size: int) -> dict[str, str]:
    """A JSON object of that many bytes."""
    return {"x": "ü" + what * (size - len('{"x":""}') - len("ü".encode()))}


def test_the_service_checks_apps(api: Service, python: int) -> None:
    with refused("the app Python"):
        api.put_app(AppSpec(site_id=api.app(python).site_id, name="Python", hooks=["run"], payload=b"x" * (LIMIT + 1)))


def test_the_service_checks_new_jobs(api: Service, tool: int, python: int) -> None:
    def job(**fields: Any) -> JobSpec:
        return JobSpec(**{"app_id": tool, "workdir": "w", "parameters": {"x": "1"}, **fields})

    api.create_jobs([job(parameters=text("a", LIMIT), data=text("a", LIMIT))])
    with refused("the parameters of job 1 of the request"):
        api.create_jobs([job(), job(parameters=text("a", LIMIT + 1))])
    with refused("the data of job 0 of the request"):
        api.create_jobs([job(data=text("a", LIMIT + 1)), job()])
    api.create_jobs([JobSpec(app_id=python, workdir="w", arguments=b"x" * LIMIT)])
    with refused("the arguments of job 0 of the request"):
        api.create_jobs([JobSpec(app_id=python, workdir="w", arguments=b"x" * (LIMIT + 1))])


def test_the_service_checks_changes(api: Service, tool: int) -> None:
    [created] = api.create_jobs([JobSpec(app_id=tool, workdir="w", parameters={"x": "1"})])
    api.patch_job(created.id, JobPatch(data=text("a", LIMIT)))
    with refused(f"the data of job {created.id}"):
        api.patch_job(created.id, JobPatch(data=text("a", LIMIT + 1)))
    with refused(f"the parameters of job {created.id}"):
        api.patch_job(created.id, JobPatch(parameters=text("a", LIMIT + 1)))
    with refused(f"the state_data of job {created.id}"):
        api.patch_job(created.id, JobPatch(state=JobState.FAILED, state_data=text("a", LIMIT + 1)))


@pytest.mark.parametrize("what", ["value", "exception"])
def test_the_service_checks_results(api: Service, what: str) -> None:
    """Those of a launcher that does not know the limit."""
    site = api.create_site(SiteSpec(name=f"of-{what}")).id
    app = api.put_app(AppSpec(site_id=site, name="Python", hooks=["run"], payload=b"x")).id
    api.create_jobs([JobSpec(app_id=app, workdir="w", arguments=b"x")])
    session = api.open_session(SessionSpec(site_id=site)).id
    [job] = api.acquire(session, AcquireRequest(max_jobs=1, max_nodes=1))

    def report(size: int) -> None:
        entity: dict[str, Any] = {what: b"x" * size}
        ok = what == "value"
        told = Report(
            job_id=job.id,
            epoch=job.epoch,
            state=JobState.RUN_DONE if ok else JobState.RUN_ERROR,
            timestamp=now(),
            result=Result(ok=ok, **entity),
        )
        began = Report(job_id=job.id, epoch=job.epoch, state=JobState.RUNNING, timestamp=now())
        api.report(session, [began, told])

    with refused(f"the {'result' if what == 'value' else what} of job {job.id}"):
        report(LIMIT + 1)
    report(LIMIT)
    assert api.results([job.id])[job.id].ok is (what == "value")
