"""Blocks come and go, break and end; nothing stays behind."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import parsl
import pytest
from parsl import python_app
from parsl.config import Config
from parsl.dataflow.states import States
from parsl.executors.errors import BadStateException
from parsl.jobs.states import JobState

from balsam_exec.client.config import load_service
from balsam_exec.embedded import Deployment
from balsam_exec.executors import BalsamParslExecutor
from balsam_exec.executors.parsl import TaskLost
from balsam_exec.executors.parsl.executor import TAG
from balsam_exec.model.batch_jobs import BatchJobPatch, BatchJobRecord, BatchJobSpec
from balsam_exec.model.errors import ConfigurationError
from balsam_exec.model.states import BATCH_JOB_ENDED, BatchJobState
from tests.executors.parsl.conftest import Load

DEADLINE = 60


@python_app
def block() -> int:
    import os

    return int(os.environ["BALSAM_BATCH_JOB_ID"])


@python_app
def wait_for(path: str, started: str) -> str:
    """Waits until there is a file; says that it has started."""
    import os
    import time

    with open(started, "a") as file:
        file.write(f"{os.getpid()}\n")
    while not os.path.exists(path):
        time.sleep(0.01)
    return os.environ["BALSAM_BATCH_JOB_ID"]


def until(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not holds():
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.02)


def blocks(deployment: Deployment, executor: BalsamParslExecutor) -> list[BatchJobRecord]:
    found = deployment.service().batch_jobs(limit=1000).results
    return [record for record in found if record.filter_tags == {TAG: executor.name}]


def pids(directory: Path) -> list[str]:
    """Of the tasks that have started."""
    file = directory / "started"
    return file.read_text().split() if file.exists() else []


def states(executor: BalsamParslExecutor) -> list[JobState]:
    return [status.state for status in executor.status_facade.values()]


def cancel(deployment: Deployment, batch_job_id: int) -> None:
    deployment.service().patch_batch_job(batch_job_id, BatchJobPatch(state=BatchJobState.PENDING_DELETION))


def test_shutdown_ends_what_runs_and_gives_all_back(load: Load, deployment: Deployment, tmp_path: Path) -> None:
    executor = BalsamParslExecutor(max_workers_per_node=1)
    load(executor)
    running = wait_for("never", "started")
    waiting = [block() for _ in range(3)]
    until((tmp_path / "started").exists, "start")
    parsl.dfk().cleanup()
    for future in [running, *waiting]:
        with pytest.raises(BadStateException, match="shut down"):
            future.result(DEADLINE)
    service = deployment.service()

    def ended() -> bool:
        return {job.state for job in service.jobs(tags={TAG: executor.name}).results} == {"USER_KILLED"}

    until(ended, "end of the jobs")
    until(lambda: {record.state for record in blocks(deployment, executor)} <= BATCH_JOB_ENDED, "end of the block")


def test_a_shutdown_does_not_take_long_however_many_tasks_there_are(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("balsam_exec.executors.parsl.executor.PATIENCE_SEC", 0.0)
    load(BalsamParslExecutor(init_blocks=0, max_blocks=0))
    futures = [block() for _ in range(50)]
    until(lambda: parsl.dfk().task_state_counts[States.launched] == 50, "submission")
    parsl.dfk().cleanup()
    assert not all(future.done() for future in futures)


def test_a_block_that_ends_loses_its_tasks_and_retries_run_in_another(
    load: Load, deployment: Deployment, tmp_path: Path
) -> None:
    executor = BalsamParslExecutor(max_blocks=1)
    load(executor, retries=1, strategy="simple")
    future = wait_for("go", "started")
    until((tmp_path / "started").exists, "start")
    [first] = blocks(deployment, executor)
    cancel(deployment, first.id)
    until(lambda: len(blocks(deployment, executor)) == 2, "second block")
    (tmp_path / "go").touch()
    assert future.result(DEADLINE) != str(first.id)

    (tmp_path / "started").unlink()
    (tmp_path / "go").unlink()
    future = wait_for("go", "started")
    for _ in range(2):
        until((tmp_path / "started").exists, "start")
        (tmp_path / "started").unlink()
        until(lambda: JobState.RUNNING in states(executor), "running block")
        cancel(deployment, blocks(deployment, executor)[-1].id)
    with pytest.raises(TaskLost, match="lost"):
        future.result(DEADLINE)


def test_scaling_out_and_in(load: Load, deployment: Deployment, tmp_path: Path) -> None:
    executor = BalsamParslExecutor(max_workers_per_node=1, init_blocks=0, max_blocks=2)
    load(executor, strategy="simple", max_idletime=0.5)
    assert executor.status_facade == {}
    futures = [wait_for("go", "started") for _ in range(4)]
    until(lambda: states(executor) == [JobState.RUNNING] * 2, "second block")
    until(lambda: len(pids(tmp_path)) == 2, "task in each block")
    (tmp_path / "go").touch()
    assert len({future.result(DEADLINE) for future in futures}) == 2
    until(lambda: states(executor) == [JobState.SCALED_IN] * 2, "scaling in")
    until(lambda: {record.state for record in blocks(deployment, executor)} <= BATCH_JOB_ENDED, "end of the blocks")


def test_idle_blocks_are_scaled_in_first(load: Load, deployment: Deployment, tmp_path: Path) -> None:
    executor = BalsamParslExecutor(max_workers_per_node=1, init_blocks=2, max_blocks=2)
    load(executor, strategy="none")
    until(lambda: states(executor) == [JobState.RUNNING] * 2, "blocks")
    future = wait_for("go", "started")
    until((tmp_path / "started").exists, "start")
    until(lambda: executor._blocks and executor._blocks.busy(["1", *executor._open_blocks()]), "report of the start")
    assert len(executor.scale_in_facade(1)) == 1
    assert executor.scale_in_facade(1, max_idletime=0.0) == [], "the one that is left is busy"
    (tmp_path / "go").touch()
    ran_in = future.result(DEADLINE)
    assert executor._open_blocks() == [ran_in]


def test_a_block_that_ended_for_want_of_work_comes_back(load: Load, deployment: Deployment) -> None:
    executor = BalsamParslExecutor(idle_ttl_sec=0)
    load(executor, strategy="none")
    first = block().result(DEADLINE)
    until(lambda: states(executor) == [JobState.COMPLETED], "end")
    assert block().result(DEADLINE) != first


def test_a_site_that_fails_breaks_the_executor(load: Load, deployment: Deployment) -> None:
    template = deployment.home / "site/job-template.sh"
    whole = template.read_text()
    executor = BalsamParslExecutor()
    try:
        template.write_text("#!/bin/bash\necho 'no such module: gcc/99' >&2\nexit 7\n")
        load(executor)
        for _ in range(2):
            with pytest.raises(BadStateException, match="no such module: gcc/99"):
                block().result(DEADLINE)
            assert executor.bad_state_is_set
        parsl.dfk().cleanup()
        template.write_text("{{ no_such_variable }}")
        executor = BalsamParslExecutor(block_error_handler=False)
        load(executor)
        until(lambda: JobState.FAILED in states(executor), "failure")
        assert not executor.bad_state_is_set, "whoever switches the handler off wants to go on"
    finally:
        template.write_text(whole)


def test_tasks_in_the_allocations_of_the_site(load: Load, deployment: Deployment) -> None:
    executor = BalsamParslExecutor(allocate=False)
    load(executor)
    assert executor.provider is None
    service = deployment.service()
    spec = BatchJobSpec(site_id=deployment.site_id, num_nodes=1, wall_time_min=5, idle_ttl_sec=0)
    future = block()
    batch_job = service.create_batch_job(spec)
    assert future.result(DEADLINE) == batch_job.id
    assert blocks(deployment, executor) == []


def test_without_allocations_it_takes_a_configured_service(balsam_home: Path) -> None:
    with pytest.raises(ConfigurationError):
        BalsamParslExecutor(allocate=False).start()


def test_it_can_be_shut_down_before_it_starts_and_has_a_repr(deployment: Deployment) -> None:
    executor = BalsamParslExecutor("mine", max_workers_per_node=3)
    executor.shutdown()
    assert repr(executor).startswith("BalsamParslExecutor(")
    assert "<unrecorded>" not in repr(executor)
    with pytest.raises(ValueError, match="max_workers_per_node"):
        BalsamParslExecutor(max_workers_per_node=0)


def test_with_a_service_of_its_own(load: Load, deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BALSAM_HOME", "/nowhere")
    load(BalsamParslExecutor(service=deployment.service(), site=deployment.site))
    assert block().result(DEADLINE)


SCRIPT = """
import parsl
from balsam_exec.executors import BalsamParslExecutor

@parsl.python_app
def double(x):
    return 2 * x

if __name__ == "__main__":
    config = parsl.Config(executors=[BalsamParslExecutor(max_workers_per_node=2)], usage_tracking=0)
    with parsl.load(config):
        print([future.result() for future in map(double, range(4))])
"""


def run_script(code: str, directory: Path, *arguments: str, returncode: int = 0) -> str:
    """What it prints."""
    script = directory / "script.py"
    script.write_text(code)
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == returncode, done.stderr
    return done.stdout


def test_a_program_with_nothing_configured(balsam_home: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        load_service()
    assert run_script(SCRIPT, tmp_path) == "[0, 2, 4, 6]\n"
    assert not (balsam_home / "credentials.json").exists()


MONITORED = """
import os
import sys
import parsl
from balsam_exec.executors import BalsamParslExecutor
from parsl.monitoring import MonitoringHub

@parsl.python_app
def block():
    import os
    return os.environ["BALSAM_BATCH_JOB_ID"]

if __name__ == "__main__":
    hub = MonitoringHub(resource_monitoring_interval=0.1, logging_endpoint=f"sqlite:///{sys.argv[1]}")
    config = parsl.Config(executors=[BalsamParslExecutor()], monitoring=hub, usage_tracking=0)
    with parsl.load(config):
        print(block().result())
"""


def test_monitoring_has_blocks_and_tasks(deployment: Deployment, tmp_path: Path) -> None:
    database = tmp_path / "monitoring.db"
    batch_job = run_script(MONITORED, tmp_path, str(database)).strip()
    with closing(sqlite3.connect(database)) as connection:
        states = connection.execute("SELECT status, job_id FROM block ORDER BY timestamp").fetchall()
        assert states[0] == ("PENDING", batch_job)
        assert states[-1] == ("SCALED_IN", batch_job)
        [(block_id, running, hostname)] = connection.execute(
            "SELECT block_id, task_try_time_running, hostname FROM try"
        ).fetchall()
        assert block_id == batch_job
        assert running
        assert hostname
        assert ("exec_done",) in connection.execute("SELECT task_status_name FROM status").fetchall()


ABANDONED = """
import os
import signal
import parsl
from balsam_exec.executors import BalsamParslExecutor

@parsl.python_app
def block():
    import os
    return os.environ["BALSAM_BATCH_JOB_ID"]

if __name__ == "__main__":
    parsl.load(parsl.Config(executors=[BalsamParslExecutor(idle_ttl_sec=1)], usage_tracking=0))
    print(block().result(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_blocks_of_a_program_that_was_killed_end(deployment: Deployment, tmp_path: Path) -> None:
    batch_job = int(run_script(ABANDONED, tmp_path, returncode=-signal.SIGKILL))
    until(lambda: deployment.service().batch_job(batch_job).state in BATCH_JOB_ENDED, "end of the block")


def test_config_takes_it() -> None:
    assert Config(executors=[BalsamParslExecutor()])


def test_without_parsl_the_error_says_what_to_install(tmp_path: Path) -> None:
    code = """
        import sys
        import balsam_exec.executors
        assert "parsl" not in sys.modules

        class Hidden:
            def find_spec(self, name, *_):
                if name == "parsl":
                    raise ModuleNotFoundError("No module named 'parsl'", name="parsl")

        sys.meta_path.insert(0, Hidden())
        try:
            balsam_exec.executors.BalsamParslExecutor
        except ImportError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert 'pip install "balsam-exec[parsl]"' in done.stdout
