"""`python -m balsam_exec.launcher` as the batch system starts it, with the real service."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from balsam_exec.apps import payload
from balsam_exec.apps.templates import parameters_of
from balsam_exec.model.apps import AppRecord, AppSpec, ParameterSpec
from balsam_exec.model.batch_jobs import BatchJobPatch, BatchJobSpec
from balsam_exec.model.jobs import JobSpec
from balsam_exec.model.sites import SiteSpec
from balsam_exec.model.states import BatchJobState, JobState
from balsam_exec.platform.settings import SiteDirectory
from tests.support.processes import wait_gone, wait_until
from tests.support.services import LiveService


class Allocation:
    """One launcher process, and a site of its own to run for."""

    def __init__(self, live: LiveService, directory: Path) -> None:
        self.service = live.service
        self.site = SiteDirectory(directory)
        record = self.service.create_site(SiteSpec(name=directory.name, path=str(directory)))
        self.site.create(record.name, record.id)
        self.site_id = record.id
        spec = BatchJobSpec(site_id=record.id, num_nodes=1, wall_time_min=10, idle_ttl_sec=60)
        self.batch_job = self.service.create_batch_job(spec).id
        self.service.patch_batch_job(self.batch_job, BatchJobPatch(state=BatchJobState.RUNNING))
        self._environment = {**os.environ, "BALSAM_URL": live.url, "BALSAM_TOKEN": live.token}
        self.process: subprocess.Popen[bytes] | None = None

    def launch(self) -> psutil.Process:
        words = [sys.executable, "-m", "balsam_exec.launcher", "--site", str(self.site.path)]
        with (self.site.log / "launcher.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*words, "--batch-job", str(self.batch_job)], env=self._environment, stdout=log, stderr=log
            )
        return psutil.Process(self.process.pid)

    @property
    def log(self) -> str:
        return (self.site.log / "launcher.log").read_text()

    def end(self, timeout: float = 20) -> int:
        assert self.process is not None
        return self.process.wait(timeout)

    def command(self, template: str) -> AppRecord:
        parameters = {name: ParameterSpec() for name in parameters_of(template)}
        spec = AppSpec(site_id=self.site_id, name="command", command_template=template, parameters=parameters)
        return self.service.put_app(spec)

    def calls(self) -> AppRecord:
        return self.service.put_app(payload.call_app(self.site_id))

    def states(self, ids: list[int]) -> set[JobState]:
        return {job.state for job in self.service.jobs(id=ids, limit=1000).results}

    def wait(self, ids: list[int], *states: JobState, timeout: float = 30) -> None:
        try:
            wait_until(lambda: self.states(ids) <= set(states), timeout, f"{states}")
        except TimeoutError as error:
            raise AssertionError(f"{self.states(ids)}\n{self.log}") from error


def guarded_by(guardian: psutil.Process) -> psutil.Process:
    """The next of the three processes of a launcher; a guardian may have adopted others."""
    (found,) = [child for child in guardian.children() if "balsam_exec.launcher" in child.cmdline()]
    return found


def proper_of(launcher: psutil.Process) -> psutil.Process:
    """The process that runs the jobs, below two guardians."""
    return guarded_by(guarded_by(launcher))


@contextmanager
def allocation_of(live: LiveService, directory: Path) -> Iterator[Allocation]:
    made = Allocation(live, directory)
    try:
        yield made
    finally:
        if made.process is not None and made.process.poll() is None:
            made.process.terminate()
            made.process.wait(20)


@pytest.fixture
def allocation(start_service: Callable[[str], LiveService], sqlite_url: str, tmp_path: Path) -> Iterator[Allocation]:
    with allocation_of(start_service(sqlite_url), tmp_path / "site") as made:
        yield made


@pytest.fixture
def busy(allocation: Allocation) -> tuple[Allocation, list[int], list[int]]:
    """A launcher with a command and a call running that would not end: (it, the jobs, pids of all they started)."""
    daemon = "(setsid env -i sleep 100 & echo -n $! >> job.out)"  # its parent is gone at once
    stubborn = f"trap '' TERM; {daemon}; setsid sleep 100 & echo ' ' $! $$; wait; wait; wait"
    app = allocation.command(stubborn)

    def hang() -> None:
        import os
        import signal
        import subprocess
        import time

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen(["sleep", "100"], env={}, start_new_session=True)
        print(os.getpid(), child.pid, flush=True)
        time.sleep(100)

    specs = [
        JobSpec(app_id=app.id, workdir="a", node_packing_count=2),
        JobSpec(
            app_id=allocation.calls().id,
            workdir="b",
            node_packing_count=2,
            arguments=payload.dump_call(hang, (), {}),
        ),
    ]
    ids = [job.id for job in allocation.service.create_jobs(specs)]
    allocation.launch()
    outputs = [allocation.site.data / name / "job.out" for name in "ab"]
    wait_until(lambda: all(path.exists() and path.read_text().endswith("\n") for path in outputs), 30, "both jobs")
    allocation.wait(ids, JobState.RUNNING)
    assert allocation.process is not None
    everything = psutil.Process(allocation.process.pid).children(recursive=True)
    pids = [process.pid for process in everything]
    assert {int(word) for path in outputs for word in path.read_text().split()} <= set(pids)
    assert len(pids) == 7
    return allocation, ids, pids


def test_a_campaign(live_service: LiveService, tmp_path: Path) -> None:
    with allocation_of(live_service, tmp_path / "site") as allocation:
        run_campaign(allocation)


def run_campaign(allocation: Allocation) -> None:
    service = allocation.service
    command, calls = allocation.command("echo {{ x }}"), allocation.calls()
    specs = [
        JobSpec(app_id=calls.id, workdir="calls", node_packing_count=2, arguments=payload.dump_call(pow, (i, 2), {}))
        for i in range(300)
    ]
    called = [job.id for job in service.create_jobs(specs)]
    commands = [
        job.id
        for job in service.create_jobs(
            [JobSpec(app_id=command.id, workdir=f"c/{i}", node_packing_count=2, parameters={"x": i}) for i in range(30)]
        )
    ]
    launcher = allocation.launch()
    allocation.wait(called[-200:], JobState.JOB_FINISHED)
    allocation.wait(called[:100], JobState.JOB_FINISHED)
    allocation.wait(commands, JobState.JOB_FINISHED)
    results = service.results(called)
    assert [payload.load_result(results[job_id]) for job_id in called] == [i * i for i in range(300)]
    outputs = [(allocation.site.data / f"c/{i}/job.out").read_text() for i in range(30)]
    assert outputs == [f"{i}\n" for i in range(30)]
    assert proper_of(launcher).memory_info().rss < 60 * 2**20
    launcher.terminate()
    assert allocation.end() == 0
    assert service.sessions(site_id=allocation.site_id).results == []


def test_sigterm_drains(busy: tuple[Allocation, list[int], list[int]]) -> None:
    allocation, ids, pids = busy
    assert allocation.process is not None
    allocation.process.send_signal(signal.SIGTERM)
    assert allocation.end() == 0
    assert all(wait_gone(pid, 5) for pid in pids)
    assert allocation.states(ids) == {JobState.RESTART_READY}
    events = allocation.service.events(kind="job", subject_id=ids, to_state="RUN_TIMEOUT").results
    assert sorted(event.subject_id for event in events) == ids
    assert {event.data["error"] for event in events} == {"the launcher got SIGTERM"}


@pytest.mark.parametrize("victim", [0, 1, 2], ids=["the first guardian", "the second guardian", "the launcher proper"])
def test_sigkill_leaves_nothing(busy: tuple[Allocation, list[int], list[int]], victim: int) -> None:
    allocation, _, pids = busy
    assert allocation.process is not None
    process = psutil.Process(allocation.process.pid)
    for _ in range(victim):
        process = guarded_by(process)
    process.kill()
    assert allocation.end() != 0
    assert all(wait_gone(pid, 5) for pid in pids)


def test_jobs_of_a_launcher_whose_guardian_was_killed_run_again_at_once(
    busy: tuple[Allocation, list[int], list[int]],
) -> None:
    allocation, ids, _ = busy
    assert allocation.process is not None
    allocation.process.kill()
    allocation.wait(ids, JobState.RESTART_READY)


def test_idle_it_ends_by_itself(allocation: Allocation) -> None:
    spec = BatchJobSpec(site_id=allocation.site_id, num_nodes=1, wall_time_min=10, idle_ttl_sec=0)
    allocation.batch_job = allocation.service.create_batch_job(spec).id
    allocation.service.patch_batch_job(allocation.batch_job, BatchJobPatch(state=BatchJobState.RUNNING))
    allocation.launch()
    assert allocation.end() == 0
    assert "there was nothing to do" in allocation.log


def test_it_does_next_to_nothing_when_idle(allocation: Allocation) -> None:
    launcher = allocation.launch()
    wait_until(lambda: "launcher of batch job" in allocation.log, 20, "the launcher to start")
    proper = proper_of(launcher)
    before = sum(proper.cpu_times()[:2])
    assert not wait_gone(proper.pid, 2)
    assert sum(proper.cpu_times()[:2]) - before < 0.1


@pytest.mark.parametrize("missing", ["site", "batch job"])
def test_what_it_cannot_do_without(allocation: Allocation, missing: str, tmp_path: Path) -> None:
    if missing == "site":
        allocation.site.settings_file.unlink()
    else:
        allocation.batch_job += 1000
    allocation.launch()
    assert allocation.end() == 1
    assert "the launcher cannot start" in allocation.log


def test_the_service_may_restart_in_the_middle(
    start_service: Callable[[str], LiveService], sqlite_url: str, tmp_path: Path
) -> None:
    live = start_service(sqlite_url)
    with allocation_of(live, tmp_path / "site") as allocation:
        calls = allocation.calls()
        specs = [
            JobSpec(app_id=calls.id, workdir="w", node_packing_count=2, arguments=payload.dump_call(abs, (-i,), {}))
            for i in range(1000)
        ]
        ids = [job.id for job in allocation.service.create_jobs(specs)]
        allocation.launch()
        allocation.wait(ids[:100], JobState.JOB_FINISHED)
        live.restart()
        for start in range(0, 1000, 200):
            allocation.wait(ids[start : start + 200], JobState.JOB_FINISHED)
