"""An executor between threads and processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from libensemble.executors.executor import Executor, ExecutorException

from balsam_exec.api import ApplicationDefinition
from balsam_exec.embedded import Deployment
from balsam_exec.executors import BalsamExecutor
from balsam_exec.model.errors import ConfigurationError

DEADLINE = 60


def test_it_is_the_executor_of_libensemble(executor: BalsamExecutor) -> None:
    assert Executor.executor is executor
    assert executor
    assert isinstance(executor, Executor)


def test_without_a_service_it_says_what_to_do(balsam_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Executor, "executor", None)
    with pytest.raises(ConfigurationError, match="balsam up"):
        BalsamExecutor()
    assert Executor.executor is None


def test_threads_have_their_own_worker(executor: BalsamExecutor) -> None:
    executor.set_worker_info("main", 0)
    together = threading.Barrier(3)

    def work(number: int) -> tuple[Any, ...]:
        executor.set_worker_info(f"comm {number}", number)
        executor.set_gen_procs_gpus({"num_procs": number})
        executor.manager_signal = number
        together.wait(DEADLINE)
        tasks = [executor.submit(app_name="echo", dry_run=True) for _ in range(number)]
        together.wait(DEADLINE)
        seen = executor.comm, executor.workerID, executor.manager_signal, executor.gen_nprocs, executor.gen_ngpus
        timing = executor.new_tasks_timing(datetime=number == 2)
        assert {task.workerID for task in tasks} == {number}
        executor.comm = None  # as libEnsemble's workers do when they end
        return *seen, timing.count("Task"), executor.new_tasks_timing(), executor.comm

    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(work, (1, 2, 3)))
    assert found == [(f"comm {n}", n, n, n, None, n, "", None) for n in (1, 2, 3)]
    assert (executor.comm, executor.workerID, executor.gen_nprocs) == ("main", 0, None)
    assert len(executor.list_of_tasks) == 6
    del executor.comm
    assert executor.comm is None
    del executor.comm


def test_it_travels_as_plain_data(executor: BalsamExecutor) -> None:
    class Local(ApplicationDefinition):  # of a block that a spawned worker does not run
        site = "local"
        command_template = "echo {{ x }}"

    executor.register_app(Local, app_name="local")
    executor.set_worker_info(threading.Lock(), 7)
    task = executor.submit(app_name="echo", wait_on_start=0)
    try:
        copy = pickle.loads(pickle.dumps(executor))
        assert (copy.workflow_name, copy.workerID, copy.comm, copy.list_of_tasks) == (
            executor.workflow_name,
            None,
            None,
            [],
        )
        assert copy.submit(app_name="local", app_args={"x": 1}, dry_run=True).runline == "echo 1"
        assert copy._here is not executor._here
        assert copy._here.tags["libe_client"] != executor._here.tags["libe_client"]
    finally:
        executor.set_worker_info()
        task.kill()


def child_of_fork(executor: BalsamExecutor, task: Any, answers: Any) -> None:
    try:
        task.poll()
    except ExecutorException as error:
        answers.put(str(error))
    executor.submit(app_name="echo", app_args="from the child", tags={"from": "child"})
    # Ends at once: the submission must not be lost with its threads.


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_makes_a_session_of_its_own(executor: BalsamExecutor, deployment: Deployment) -> None:
    task = executor.submit(app_name="echo", app_args="from the parent")
    assert executor._here.engine.flush(DEADLINE)
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=child_of_fork, args=(executor, task, answers))
    child.start()
    assert "reattach" in answers.get(timeout=DEADLINE)
    child.join(DEADLINE)
    assert child.exitcode == 0
    service = deployment.service()
    jobs = service.jobs(tags={"libe": executor.workflow_name}).results
    assert [job.tags.get("from") for job in jobs] == [None, "child"]
    assert len({job.tags["libe_client"] for job in jobs}) == 2
    task.kill()
    executor.reattach(tags={"from": "child"})[0].kill()


SCRIPT = """
import sys
from balsam_exec.executors import BalsamExecutor

executor = BalsamExecutor(sys.argv[1])
executor.register_app(full_path="/bin/echo")
for i in range(50):
    executor.submit(app_name="echo", app_args=str(i))
"""


def test_a_process_that_ends_at_once_loses_nothing(deployment: Deployment, tmp_path: Path) -> None:
    name = f"leaves-{os.getpid()}"
    command = [sys.executable, "-c", SCRIPT, name]
    done = subprocess.run(command, cwd=tmp_path, timeout=DEADLINE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    service = deployment.service()
    assert service.count_jobs(tags={"libe": name}) == 50


def test_importing_the_package_imports_no_tool() -> None:
    code = (
        "import sys, balsam_exec.executors as e; assert 'BalsamExecutor' in dir(e); "
        "print([m for m in sys.modules if m.split('.')[0] in ('libensemble', 'parsl')])"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=DEADLINE, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


MISSING = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == "libensemble":
            raise ModuleNotFoundError(name=name)

sys.meta_path.insert(0, Missing())
try:
    from balsam_exec.executors import BalsamExecutor
except ImportError as error:
    print(error)
"""


def test_a_missing_libensemble_is_told() -> None:
    done = subprocess.run([sys.executable, "-c", MISSING], timeout=DEADLINE, capture_output=True, text=True, check=True)
    assert 'pip install "balsam-exec[libensemble]"' in done.stdout
