"""A launcher's life: how it ends, and what it does when the service does not answer."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from balsam_exec.launcher import link
from balsam_exec.model.errors import BalsamError, InvalidRequest, NotFound, ServiceUnavailable
from balsam_exec.model.sessions import Report
from balsam_exec.model.states import JobState
from tests.launcher.conftest import Running
from tests.launcher.fake_service import FakeService
from tests.support.processes import wait_gone, wait_until

Launch = Callable[..., Running]


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "_PAUSE", 0.02)


def pid_in(path: Path) -> int:
    """The pid that a job wrote into its job.out."""
    wait_until(lambda: path.exists() and path.read_text().endswith("\n"), 20, f"{path} to be written")
    return int(path.read_text())


def test_it_ends_when_idle(service: FakeService, launch: Launch) -> None:
    running = launch(idle=0.3)
    done = service.add_jobs(service.add_app(command_template="true"), 5)
    assert running.join()
    assert service.closed
    assert all(service.state[i] is JobState.RUN_DONE for i in done)


def test_it_asks_for_what_suits_it(service: FakeService, launch: Launch) -> None:
    launch(cores=3, gpus=2, wall_time=600, margin=10)
    service.wait_for(lambda: bool(service.requests))
    request = service.requests[0]
    assert (request.max_jobs, request.max_nodes, request.max_gpus_per_node) == (3, 1, 2)
    assert request.max_wall_time_min == 9


def test_it_drains_when_the_wall_time_ends(service: FakeService, launch: Launch) -> None:
    app = service.add_app(command_template="sleep {{ t }}", parameters={"t": {}})
    ids = service.add_jobs(app, 3, parameters={"t": 100}, node_packing_count=2)
    assert launch(wall_time=1.0, margin=0.5).join()
    assert sorted(service.state[i] for i in ids) == [
        JobState.PREPROCESSED,
        JobState.RUN_TIMEOUT,
        JobState.RUN_TIMEOUT,
    ]
    assert service.closed


def test_many_short_jobs_are_told_in_few_reports(service: FakeService, launch: Launch) -> None:
    app = service.add_app(command_template="true")
    ids = service.add_jobs(app, 200, node_packing_count=2)
    slow = 0.05
    service.report_fault = lambda reports: time.sleep(slow)
    launch()
    service.wait(ids)
    assert len(service.batches) < 40
    for job_id in ids:
        assert [report.state for report in service.history[job_id]] == [JobState.RUNNING, JobState.RUN_DONE]


def test_it_rides_out_an_absent_service(service: FakeService, launch: Launch) -> None:
    app = service.add_app(command_template="true")
    launch()
    service.wait(service.add_jobs(app, 2))
    service.set_fault(ServiceUnavailable("away"))
    ids = service.add_jobs(app, 20)
    assert not any(service.history[i] for i in ids)
    service.set_fault(None)
    service.wait(ids)


def test_jobs_of_a_lost_answer_are_not_lost(service: FakeService, launch: Launch) -> None:
    service.lose_answers = 2
    launch()
    service.wait(service.add_jobs(service.add_app(command_template="true"), 5))


def test_reports_survive_an_absent_service(service: FakeService, launch: Launch, tmp_path: Path) -> None:
    launch()
    app = service.add_app(command_template="echo $$; while [ ! -e go ]; do sleep 0.02; done")
    job_id = service.add_job(app, workdir="w")
    pid = pid_in(tmp_path / "data/w/job.out")
    service.wait([job_id], JobState.RUNNING)
    service.set_fault(ServiceUnavailable("away"))
    (tmp_path / "data/w/go").touch()
    assert wait_gone(pid, 10)
    service.set_fault(None)
    service.wait([job_id], JobState.RUN_DONE)


def test_when_the_lease_cannot_be_renewed_it_kills_its_jobs_and_ends(
    service: FakeService, launch: Launch, tmp_path: Path
) -> None:
    service.ttl = 1.0
    running = launch()
    service.add_job(service.add_app(command_template="echo $$; sleep 100"), workdir="w")
    pid = pid_in(tmp_path / "data/w/job.out")
    service.wait_for(lambda: service.heartbeats > 4)  # it lives longer than the lease, as long as it is renewed
    service.set_fault(ServiceUnavailable("away"))
    assert running.join() is False
    assert wait_gone(pid, 1)


@pytest.mark.parametrize("fault", [NotFound("no such session"), BalsamError("confused")])
def test_a_session_that_is_over_ends_it(
    service: FakeService, launch: Launch, tmp_path: Path, fault: BalsamError
) -> None:
    service.ttl = 1.0
    running = launch()
    service.add_job(service.add_app(command_template="echo $$; sleep 100"), workdir="w")
    pid = pid_in(tmp_path / "data/w/job.out")
    service.set_fault(fault)
    assert running.join() is False
    assert wait_gone(pid, 1)


def test_a_job_whose_lease_is_over_is_killed_and_the_others_are_told(
    service: FakeService, launch: Launch, tmp_path: Path
) -> None:
    launch()
    app = service.add_app(command_template="echo $$; while [ ! -e go ]; do sleep 0.02; done; echo over")
    mine, lost = (service.add_job(app, workdir=str(i), node_packing_count=2) for i in (1, 2))
    pids = [pid_in(tmp_path / f"data/{i}/job.out") for i in (1, 2)]
    service.wait([mine, lost], JobState.RUNNING)
    service.take_away(lost)
    # The launcher learns of it with the next report in which the lost job is named.
    (tmp_path / "data/2/go").touch()
    assert wait_gone(pids[1], 10)
    (tmp_path / "data/1/go").touch()
    service.wait([mine], JobState.RUN_DONE)
    assert service.state[lost] is JobState.USER_KILLED


def test_a_lease_lost_before_the_start_is_told_kills_the_job(
    service: FakeService, launch: Launch, tmp_path: Path
) -> None:
    def take_away_the_first(reports: Sequence[Report]) -> None:
        if service.state[1] is JobState.PREPROCESSED and any(r.job_id == 1 for r in reports):
            service.take_away(1)

    service.report_fault = take_away_the_first
    launch()
    app = service.add_app(command_template="echo $$; sleep {{ t }}", parameters={"t": {}})
    service.add_job(app, workdir="w", parameters={"t": 100}, node_packing_count=2)
    other = service.add_job(app, parameters={"t": 0}, node_packing_count=2)
    assert wait_gone(pid_in(tmp_path / "data/w/job.out"), 10)
    service.wait([other], JobState.RUN_DONE)
    assert service.state[1] is JobState.USER_KILLED


def test_a_result_the_service_refuses_becomes_an_error(service: FakeService, launch: Launch) -> None:
    def refuse(reports: Sequence[Report]) -> None:
        if any(r.job_id == 3 and r.result and r.result.ok for r in reports):
            raise InvalidRequest("I do not like it")

    service.report_fault = refuse
    launch()
    ids = service.add_jobs(service.add_app(command_template="true"), 6, node_packing_count=2)
    service.wait(ids)
    assert service.results[3].error == "the service refused the result: I do not like it"
    assert all(service.state[i] is JobState.RUN_DONE for i in ids if i != 3)


def test_nothing_is_left_open(service: FakeService, launch: Launch) -> None:
    before = len(os.listdir("/proc/self/fd"))
    running = launch()
    service.wait(service.add_jobs(service.add_app(command_template="true"), 20, node_packing_count=2))
    running.stop()
    assert len(os.listdir("/proc/self/fd")) <= before
