"""Tasks on a real deployment, without an ensemble around them."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from libensemble.executors.executor import END_STATES, ExecutorException, TimeoutExpired
from libensemble.message_numbers import (
    MAN_SIGNAL_KILL,
    STOP_TAG,
    TASK_FAILED,
    TASK_FAILED_TO_START,
    WORKER_DONE,
    WORKER_KILL_ON_TIMEOUT,
)

from balsam_exec.api import ApplicationDefinition
from balsam_exec.client.files import JobFiles
from balsam_exec.client.transport import Transport
from balsam_exec.embedded import Deployment
from balsam_exec.executors import BalsamExecutor, BalsamTask
from balsam_exec.executors.libensemble import task as task_module
from balsam_exec.model.errors import InvalidRequest
from balsam_exec.model.sites import SiteSpec
from balsam_exec.model.states import JobState
from tests.executors.libensemble.conftest import Greet

pytestmark = pytest.mark.usefixtures("allocation")

DEADLINE = 60


def processes(marker: str) -> list[int]:
    found = psutil.process_iter(["cmdline", "status"])
    return [p.pid for p in found if marker in (p.info["cmdline"] or []) and p.info["status"] != psutil.STATUS_ZOMBIE]


def test_a_definition(executor: BalsamExecutor) -> None:
    before = time.time()
    task = executor.submit(app_name="greet", app_args={"name": "two words"}, tags={"kind": "test"})
    assert isinstance(task, BalsamTask)
    task.wait(DEADLINE)
    after = time.time()
    assert (task.state, task.finished, task.success, task.errcode) == ("FINISHED", True, True, 0)
    assert (task.done(), task.running(), task.cancelled(), task.error) == (True, False, False, "")
    assert (task.result(), task.exception()) == ("FINISHED", 0)
    assert task.read_stdout() == task.read_stderr() == "hello two words\ncomplaint\n"
    assert task.workdir_exists()
    assert task.stdout_exists()
    assert not task.file_exists_in_workdir("nothing")
    with pytest.raises(ValueError, match="nothing not found"):
        task.read_file_in_workdir("nothing")
    assert task.total_time is not None
    assert before * 1000 - 1 <= task.submit_time <= after * 1000
    assert 0 < task.runtime <= task.total_time <= after - before + 0.01
    assert task.timer.total == pytest.approx(task.runtime, abs=0.01)
    assert task.runline == "echo hello 'two words'; echo complaint >&2; exit 0"
    job = task.process
    assert job is not None
    assert job.state is JobState.JOB_FINISHED
    assert job.tags["kind"] == "test"
    assert job.tags["libe"] == executor.workflow_name
    assert job.node_packing_count == 1
    assert job.result() is None


def test_tasks_share_no_workdir_unless_they_are_told_to(executor: BalsamExecutor) -> None:
    tasks = [executor.submit("sim", app_args={"name": i}) for i in range(3)]
    together = [executor.submit("sim", app_args={"name": i}, workdir="one/place") for i in range(2)]
    assert len({task.workdir for task in tasks}) == 3
    assert {task.workdir.partition("data/")[2] for task in together} == {f"{executor.workflow_name}/one/place"}
    for i, task in enumerate(tasks):
        task.wait(DEADLINE)
        assert task.read_stdout().startswith(f"hello {i}\n")
    for task in together:
        task.wait(DEADLINE)


def test_an_executable_runs_where_its_caller_is(
    executor: BalsamExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SET_BY_A_SIM", "a value")
    (tmp_path / "input").write_text("42")
    script = tmp_path / "script.sh"
    script.write_text("cat input; pwd; echo $SET_BY_A_SIM; echo oops >&2; touch made\n")
    for _ in range(2):  # the files of the first run are not appended to
        task = executor.submit(app_name="sh", app_args="script.sh", stdout="out.txt", stderr="err.txt")
        task.wait(DEADLINE)
        assert (task.state, task.workdir) == ("FINISHED", str(tmp_path))
        assert task.read_stdout() == f"42{tmp_path}\na value\n"
        assert task.read_stderr() == "oops\n"
        assert task.file_exists_in_workdir("made")
    assert task.runline == "/bin/sh script.sh"
    other = tmp_path / "sim1"
    other.mkdir()
    monkeypatch.chdir(other)
    monkeypatch.delenv("SET_BY_A_SIM")
    executor.register_app("/bin/sh", app_name="contained", precedent="nice -n 1")
    elsewhere = executor.submit(app_name="contained", app_args=["-c", "pwd; echo $LIBENSEMBLE_SIM_DIR; nice"])
    elsewhere.wait(DEADLINE)
    assert elsewhere.read_stdout() == f"{other}\nsim1\n1\n"
    assert (other / f"{elsewhere.name}.out").exists()


def test_the_output_files_of_an_executable_are_there_before_it_runs(executor: BalsamExecutor, tmp_path: Path) -> None:
    (tmp_path / "out.txt").write_text("of a former run")
    task = executor.submit(app_name="sh", num_nodes=4711, stdout="out.txt", stderr="err.txt")
    assert task.read_stdout() == task.read_stderr() == ""
    task.kill()
    below = executor.submit(app_name="sh", app_args=["-c", "echo here"], stdout="new/directory/out.txt")
    below.wait(DEADLINE)
    assert below.read_stdout() == "here\n"


def test_an_executable_in_the_environment_of_a_script(executor: BalsamExecutor, tmp_path: Path) -> None:
    script = tmp_path / "env.sh"
    script.write_text("#!/bin/sh\nexport FROM_SCRIPT=yes\n")
    printing = tmp_path / "printing.py"
    printing.write_text("import os; print(os.environ['FROM_SCRIPT'])")
    executor.register_app(full_path=str(printing), app_name="printing")
    task = executor.submit(app_name="printing", env_script=str(script), wait_on_start=True)
    task.wait(DEADLINE)
    assert (task.state, task.read_stdout()) == ("FINISHED", "yes\n")


def test_ranks(executor: BalsamExecutor) -> None:
    task = executor.submit(app_name="echo", app_args="rank", num_procs=2, extra_args="-l")
    task.wait(DEADLINE)
    assert sorted(task.read_stdout().splitlines()) == ["[0] rank", "[1] rank"]
    assert task.runline == "mpiexec -n 2 -l /bin/echo rank"


def test_resources_arrive_in_the_job(executor: BalsamExecutor, deployment: Deployment) -> None:
    task = executor.submit(
        app_name="greet",
        app_args={"name": "x"},
        num_procs=6,
        num_nodes=3,
        max_tasks_per_node=1,
        gpus_per_rank=2,
        hyperthreads=True,
        threads_per_rank=4,
        wall_time_min=7,
        extra_args={"--bind-to": "core"},
        tags={"a": "b", "libe": "spoofed"},
    )
    try:
        assert executor._here.engine.flush(DEADLINE)
        record = deployment.service().job(task.job_id or 0)
        assert (record.num_nodes, record.ranks_per_node, record.gpus_per_rank) == (3, 2, 2.0)
        assert (record.threads_per_rank, record.threads_per_core, record.wall_time_min) == (4, 2, 7)
        assert record.launch_params == {"--bind-to": "core"}
        assert (record.tags["a"], record.tags["libe"]) == ("b", executor.workflow_name)
        assert (task.state, task.ngpus_req) == ("WAITING", 4)
    finally:
        task.kill()
    assert task.cancelled()


def test_what_the_generator_wants(executor: BalsamExecutor) -> None:
    executor.set_gen_procs_gpus({"num_procs": 4, "num_gpus": 2})
    task = executor.submit(app_name="echo", dry_run=True)
    assert task.runline == "mpiexec -n 4 /bin/echo"
    assert executor.submit(app_name="echo", num_procs=1, dry_run=True).runline == "/bin/echo"
    executor.set_gen_procs_gpus({})

    class Mine:
        slot_count, gpus_per_rset_per_node, local_node_count = 2, 2, 1

        def doihave_gpus(self) -> bool:
            return True

    class Resources:
        worker_resources = Mine()

    executor.set_resources(Resources())
    assert executor.submit(app_name="echo", auto_assign_gpus=True, dry_run=True).runline == "mpiexec -n 4 /bin/echo"
    task = executor.submit(app_name="echo", auto_assign_gpus=True, num_procs=2, dry_run=True)
    assert task.runline == "mpiexec -n 2 /bin/echo"


def test_failures_have_their_exit_code(executor: BalsamExecutor) -> None:
    failed = executor.submit("sim", app_args={"name": "x", "code": 7})
    assert failed.exception(DEADLINE) == 7
    assert (failed.state, failed.success, failed.finished, failed.result()) == ("FAILED", False, True, "FAILED")
    assert "exit code 7" in failed.error
    assert executor.polling_loop(failed) == TASK_FAILED
    fine = executor.submit("sim", app_args={"name": "x"})
    assert executor.polling_loop(fine, delay=DEADLINE) == WORKER_DONE


def test_what_the_service_refuses_fails_to_start_and_nothing_else_does(
    executor: BalsamExecutor, deployment: Deployment
) -> None:
    service = deployment.service()
    executor.register_app(full_path="/bin/false", app_name="gone")
    service.delete_app(executor.apps["gone"].record.id)
    good, *bad = (executor.submit(app_name=name, app_args="x") for name in ("echo", "gone", "gone"))
    for task in bad:
        assert executor.polling_loop(task) == TASK_FAILED_TO_START
        assert (task.state, task.success, task.exception()) == ("FAILED_TO_START", False, 1)
        assert task.error
    good.wait(DEADLINE)
    assert good.success


def test_waiting(executor: BalsamExecutor) -> None:
    task = executor.submit("gen", app_args="2", wait_on_start=True)
    assert (task.state, task.running(), task.done()) == ("RUNNING", True, False)
    started = time.monotonic()
    for timeout in (0, 0.05):
        with pytest.raises(TimeoutExpired) as raised:
            task.wait(timeout)
        assert (raised.value.task, raised.value.timeout) == (task.name, timeout)
    assert 0.05 <= time.monotonic() - started < 2
    assert not task.finished
    task.wait(DEADLINE)
    assert task.runtime >= 1.99


def test_waiting_for_a_start_that_does_not_come(executor: BalsamExecutor) -> None:
    task = executor.submit("gen", app_args="1", num_nodes=5, wait_on_start=0.1)
    assert task.state == "WAITING"
    task.cancel()
    assert (task.state, task.cancelled(), task.errcode) == ("USER_KILLED", True, None)


def test_polls_ask_nobody(executor: BalsamExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    task = executor.submit("gen", app_args="30", wait_on_start=True)
    asked = []
    request = Transport.request

    def counting(self: Transport, method: str, path: str, **options: Any) -> bytes:
        asked.append((method, path))
        return request(self, method, path, **options)

    monkeypatch.setattr(Transport, "request", counting)
    for _ in range(100):
        executor.poll(task)
        assert task.running()
    assert [path for _, path in asked if path != "/events/feed"] == []
    assert len(asked) <= 1
    task.kill()


@pytest.mark.parametrize("procs", [1, 2])
def test_killing_what_runs(executor: BalsamExecutor, procs: int) -> None:
    marker = f"30.{os.getpid()}{procs}"
    task = executor.submit("gen", app_args=marker, num_procs=procs, wait_on_start=True)
    executor.kill(task)
    assert processes(marker) == []
    assert (task.state, task.finished, task.success, task.cancelled()) == ("USER_KILLED", True, False, True)
    assert task.process is not None
    assert task.process.state is JobState.USER_KILLED
    assert task.runtime < 30
    executor.kill(task)  # again: only a warning
    with pytest.raises(ExecutorException, match="Invalid task"):
        executor.kill("task")


def test_killing_what_ignores_sigterm(executor: BalsamExecutor) -> None:
    task = executor.submit(app_name="sh", app_args=["-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"])
    while not (task.stdout_exists() and "ready" in task.read_stdout()):
        assert task.state not in END_STATES
        task.linger(0.02)
    task.kill(wait_time=1)
    assert (task.state, task.finished) == ("USER_KILLED", True)


def test_a_kill_before_the_submission_is_answered(executor: BalsamExecutor) -> None:
    tasks = [executor.submit("gen", app_args="30") for _ in range(20)]
    for task in tasks:
        task.kill()
        assert task.state == "USER_KILLED", task


def test_the_polling_loop_kills_what_runs_for_too_long(executor: BalsamExecutor) -> None:
    task = executor.submit("gen", app_args="30")
    assert executor.polling_loop(task, timeout=0.2, delay=0.05) == WORKER_KILL_ON_TIMEOUT
    assert task.state == "USER_KILLED"
    assert 0.2 < task.runtime < 10


class Manager:
    """The end of a worker's comm to a manager that says one thing."""

    def __init__(self, *message: int) -> None:
        self.inbox: list[tuple[int, ...]] = [message]
        self.buffer: list[tuple[int, ...]] = []

    def mail_flag(self) -> bool:
        return bool(self.inbox)

    def recv(self) -> tuple[int, ...]:
        return self.inbox.pop()

    def push_to_buffer(self, *message: int) -> None:
        self.buffer.append(message)


def test_the_manager_kills(executor: BalsamExecutor) -> None:
    manager = Manager(STOP_TAG, MAN_SIGNAL_KILL)
    executor.set_worker_info(manager, 1)
    task = executor.submit("gen", app_args="30")
    assert executor.polling_loop(task, delay=0.05, poll_manager=True) == MAN_SIGNAL_KILL
    assert task.state == "USER_KILLED"
    assert manager.buffer == [(STOP_TAG, MAN_SIGNAL_KILL)]
    assert not executor.manager_kill_received()


def test_a_dry_run_only_logs(executor: BalsamExecutor, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    with caplog.at_level(logging.INFO, logger="libensemble"):
        greet = executor.submit(app_name="greet", app_args={"name": "a b"}, dry_run=True, num_procs=2)
        sleep = executor.submit("gen", app_args="1", dry_run=True)
    line = "mpiexec -n 2 echo hello 'a b'; echo complaint >&2; exit 0"
    assert [r.getMessage() for r in caplog.records] == [
        f"Test (No submit) Runline: {line}",
        "Test (No submit) Runline: /bin/sleep 1",
    ]
    for task in (greet, sleep):
        assert (task.state, task.finished, task.success, task.process, task.job_id) == (
            "FINISHED",
            True,
            True,
            None,
            None,
        )
        task.kill()
        task.poll()
        task.wait()
        assert task.state == "FINISHED"
    assert executor._session is not None
    assert executor._session._engine is None, "a dry run has no business with the feed"
    assert list(tmp_path.glob("libe_task*")) == []


def test_mistakes_are_told_at_once(executor: BalsamExecutor) -> None:
    for arguments, says in [
        ({}, "Either app_name or calc_type"),
        ({"app_name": "nobody"}, "nobody not found"),
        ({"app_name": "greet"}, "missing: name"),
        ({"app_name": "greet", "app_args": {"name": 1, "other": 2}}, "unknown: other"),
        ({"app_name": "greet", "app_args": {"name": {1: 2}}}, "cannot stand in a command"),
        ({"app_name": "greet", "app_args": "a line"}, "are a dictionary"),
        ({"app_name": "greet", "app_args": {"name": 1}, "workdir": "../other"}, "workdir"),
        ({"app_name": "greet", "app_args": {"name": 1}, "transfers": {"data": "a:b"}}, "unknown: data"),
        ({"app_name": "greet", "app_args": {"name": 1}, "tags": {"": "x"}}, "tags"),
        ({"app_name": "echo", "app_args": {"name": 1}}, "a line or a list"),
        ({"app_name": "echo", "num_procs": 3, "num_nodes": 2}, "evenly"),
        ({"app_name": "echo", "stdout": "/elsewhere"}, "not in the directory"),
    ]:
        with pytest.raises(ExecutorException, match=says):
            executor.submit(**arguments)  # type: ignore[arg-type]
    executor.register_app(full_path="/no/such/file", app_name="missing")
    with pytest.raises(ExecutorException, match="does not exist"):
        executor.submit(app_name="missing")
    with pytest.raises(ExecutorException, match="an ApplicationDefinition or a path"):
        executor.register_app(5)
    with pytest.raises(ExecutorException, match="calculation type"):
        executor.register_app(Greet, calc_type="other")
    with pytest.raises(ExecutorException, match="name of a workflow"):
        BalsamExecutor("../up")
    assert executor.list_of_tasks == []


def test_what_means_nothing_here_is_ignored_with_one_warning(
    executor: BalsamExecutor, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(task_module.log, "warning", lambda message, *args: said.append(message % args))
    for _ in range(2):
        executor.submit(app_name="echo", dry_run=True, machinefile="m", mpi_runner_type="srun", stage_inout="d")
    assert len(said) == 3
    assert "machinefile='m'" in said[0]


class Add(ApplicationDefinition):
    """A Python app."""

    site = "local"

    def run(self, a: int, b: int) -> int:
        print("adding")
        return a + b


def test_python_apps(executor: BalsamExecutor) -> None:
    executor.register_app(Add)
    task = executor.submit(app_name="Add", app_args={"a": 2, "b": 3})
    assert (task.result(DEADLINE), task.errcode) == ("FINISHED", 0)
    assert task.process is not None
    assert task.process.result() == 5
    failed = executor.submit(app_name="Add", app_args={"a": 2, "b": "3"})
    assert (failed.result(DEADLINE), failed.errcode) == ("FAILED", 1)
    assert "TypeError" in failed.error
    with pytest.raises(ExecutorException, match="missing: b"):
        executor.submit(app_name="Add", app_args={"a": 2})


@pytest.fixture
def remote(executor: BalsamExecutor, monkeypatch: pytest.MonkeyPatch) -> BalsamExecutor:
    """The executor as on another machine than the site."""
    executor.apps["greet"].data = None
    client = executor._here.client
    monkeypatch.setattr(type(client), "files", JobFiles(client.service, local=False))
    return executor


def test_files_of_a_remote_site(remote: BalsamExecutor) -> None:
    task = remote.submit("sim", app_args={"name": "from afar"})
    assert not os.path.isabs(task.workdir)
    task.wait(DEADLINE)
    assert task.workdir_exists()
    assert task.stdout_exists()
    assert task.read_stdout() == "hello from afar\ncomplaint\n"
    assert not task.file_exists_in_workdir("other")
    with pytest.raises(ValueError, match="other not found"):
        task.read_file_in_workdir("other")


def test_executables_need_a_local_site(executor: BalsamExecutor, deployment: Deployment, tmp_path: Path) -> None:
    far = deployment.service().create_site(SiteSpec(name=f"far-{tmp_path.name}", path="/far", hostname="away"))
    other = BalsamExecutor(site=far.name)
    with pytest.raises(ExecutorException, match=r"/far on away: register an ApplicationDefinition"):
        other.register_app(full_path="/bin/true")


def test_a_definition_whose_site_is_unknown(executor: BalsamExecutor) -> None:
    class Homeless(ApplicationDefinition):
        command_template = "true"

    with pytest.raises(InvalidRequest, match="needs a site"):
        executor.register_app(Homeless)
