"""A new version of an app reaches a running launcher with the next job, and the event of each run says which it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from balsam_exec import ApplicationDefinition, EventLog, Job
from balsam_exec.api import App
from balsam_exec.launcher.asker import Habits
from balsam_exec.model.errors import DoesNotExist
from balsam_exec.model.states import JobState
from tests.launcher.conftest import Running
from tests.launcher.fake_service import FakeService

DEADLINE = 60


def version_of(job: Job) -> str:
    """What the event of the job's last run names."""
    event = EventLog.objects.filter(job_id=job.id, to_state=JobState.RUNNING).order_by("-id").first()
    assert event is not None
    found: str = event.data["app"]
    return found


def tool(**attributes: Any) -> Any:
    return type("Tool", (ApplicationDefinition,), {"site": "local", **attributes})


def digest(app: Any) -> str:
    found: str = App.objects.get(id=app.__app_id__).digest
    return found


@pytest.mark.usefixtures("allocation")
def test_a_python_app_that_changes() -> None:
    versions = [tool(run=lambda self: "old"), tool(run=lambda self: "new"), tool(run=lambda self: "newest")]
    told = []
    for version in versions:
        version.sync()
        job = Job("w", "Tool")
        job.save()
        told.append((job.result(DEADLINE), version_of(job) == digest(version)[:12]))
    assert told == [("old", True), ("new", True), ("newest", True)]
    assert len({version.__app_id__ for version in versions}) == 1


@pytest.mark.usefixtures("allocation")
def test_a_command_that_changes_and_changes_back(deployment: Any) -> None:
    old, new = tool(command_template="echo old; echo {{ x }}"), tool(command_template="echo new; echo {{ x }}")
    jobs = []
    for number, version in enumerate([old, new, old]):
        version.sync()
        job = version.submit(f"changes/{number}", x=number)
        job.result(DEADLINE)
        jobs.append((version_of(job), (job.resolve_workdir(deployment.home / "site/data") / "job.out").read_text()))
    assert [output for _, output in jobs] == ["old\n0\n", "new\n1\n", "old\n2\n"]
    assert jobs[0][0] == jobs[2][0] != jobs[1][0]


@pytest.mark.usefixtures("allocation")
def test_an_app_that_is_renamed_while_jobs_of_it_wait() -> None:
    class Original(ApplicationDefinition):
        site = "local"

        def run(self, x: int) -> int:
            return 2 * x

    first = Original.submit("w", x=1)
    first.result(DEADLINE)
    waiting = Original.submit("w", x=2, parent_ids=[Original.submit("w", x=0)])
    Original.rename("Renamed")
    after = Job("w", "Renamed", "local", parameters={"x": 3})
    after.save()
    assert [job.result(DEADLINE) for job in (waiting, after, Original.submit("w", x=4))] == [4, 6, 8]
    assert after.app_id == first.app_id
    with pytest.raises(DoesNotExist, match="Original"):
        Job("w", "Original", "local").save()


@pytest.mark.usefixtures("allocation")
def test_only_what_decides_what_runs_makes_another_version() -> None:
    first = tool(command_template="true", __doc__="As it was.")
    first.sync()
    before = digest(first)
    tool(command_template="true", __doc__="Better explained.").sync()
    assert digest(first) == before
    tool(command_template="true", environment_variables={"A": "1"}).sync()
    assert digest(first) != before


def test_a_version_that_comes_between_lease_and_look_up_is_the_one_that_is_named(
    service: FakeService, launch: Callable[..., Running], tmp_path: Path
) -> None:
    old = service.add_app(command_template="echo old", digest="0" * 64)
    job_id = service.add_job(old, workdir="w")
    new = service.add_app(id=old.id, command_template="echo new", digest="1" * 64)
    launch()
    service.wait([job_id])
    assert (tmp_path / "data/w/job.out").read_text() == "new\n"
    assert service.history[job_id][0].data == {"app": new.digest[:12]}


def test_what_was_leased_before_a_change_runs_as_it_was_leased(
    service: FakeService, launch: Callable[..., Running], tmp_path: Path
) -> None:
    """A launcher holds work in advance: the version in the event must be the one that ran."""
    old = service.add_app(command_template="echo old; until [ -e ../go ]; do sleep 0.02; done", digest="0" * 64)
    quick = service.add_job(service.add_app(command_template="true", digest="2" * 64), workdir="quick")
    running, waiting = service.add_jobs(old, 2, workdir="w")
    launch(cores=1, habits=Habits(prefetch=10.0))  # when one ends, others may, too
    service.wait([quick])
    service.wait([running], JobState.RUNNING)
    service.wait_for(lambda: len(service.leased) == 2)
    new = service.add_app(id=old.id, command_template="echo new", digest="1" * 64)
    after = service.add_job(new, workdir="w")
    (tmp_path / "data/go").touch()
    service.wait([running, waiting, after])
    assert (tmp_path / "data/w/job.out").read_text() == "old\nold\nnew\n"
    reports = [report for job_id in (running, waiting, after) for report in service.history[job_id]]
    versions = [report.data["app"] for report in reports if report.state is JobState.RUNNING]
    assert versions == ["0" * 12, "0" * 12, "1" * 12]
