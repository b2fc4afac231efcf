"""Tasks whose libEnsemble has died."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from libensemble.message_numbers import WORKER_DONE

from balsam_exec.embedded import Deployment
from balsam_exec.executors import BalsamExecutor

pytestmark = pytest.mark.usefixtures("allocation")

DEADLINE = 60

SCRIPT = """
import os, signal, sys
from balsam_exec.executors import BalsamExecutor
from tests.executors.libensemble.conftest import Greet

executor = BalsamExecutor(sys.argv[1])
executor.set_worker_info(None, 3)
executor.register_app(Greet, app_name="greet")
executor.register_app(full_path="/bin/sleep", app_name="sleep")
done = executor.submit(app_name="greet", app_args={"name": "before", "code": 4}, tags={"sim": "1"})
running = executor.submit(app_name="sleep", app_args="1", tags={"sim": "2"}, wait_on_start=True)
forever = executor.submit(app_name="sleep", app_args="60", tags={"sim": "3"}, wait_on_start=True)
never = executor.submit(app_name="greet", app_args={"name": "never"}, num_nodes=9, tags={"sim": "4"}, workdir="apart")
done.wait(30)
executor._here.engine.flush(30)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_after_a_crash(executor: BalsamExecutor, deployment: Deployment, tmp_path: Path) -> None:
    name = executor.workflow_name
    started = time.time()
    root = str(Path(__file__).parents[3])
    died = subprocess.run(
        [sys.executable, "-c", SCRIPT, name], cwd=tmp_path, env={**os.environ, "PYTHONPATH": root}, timeout=DEADLINE
    )
    assert died.returncode == -signal.SIGKILL
    executor.register_app(full_path="/bin/sleep", app_name="sleep")

    done, running, forever, never = tasks = executor.reattach()
    assert executor.list_of_tasks == tasks
    assert [task.tags["sim"] for task in tasks] == ["1", "2", "3", "4"]
    assert [task.workerID for task in tasks] == [3] * 4
    assert (done.state, done.errcode, done.finished) == ("FAILED", 4, True)
    assert done.name.startswith("libe_task_greet_worker3_")
    assert done.read_stdout() == "hello before\ncomplaint\n"
    assert done.total_time is not None
    assert done.submit_time is not None
    assert 0 < done.runtime <= done.total_time < 60
    assert started * 1000 - 5000 < done.submit_time < time.time() * 1000

    assert executor.polling_loop(running) == WORKER_DONE
    assert running.runtime >= 0.99
    assert running.total_time is not None
    assert running.total_time >= running.runtime
    assert running.workdir == str(tmp_path)
    assert running.stdout_exists()

    assert forever.running()
    assert forever.runtime > 0
    forever.kill()
    assert forever.cancelled()

    assert never.state == "WAITING"
    assert [task.job_id for task in executor.reattach(finished=False)] == [never.job_id]
    assert [task.job_id for task in executor.reattach(workdir="apart")] == [never.job_id]
    assert [task.job_id for task in executor.reattach(app_name="sleep")] == [running.job_id, forever.job_id]
    assert [task.job_id for task in executor.reattach(workdir=str(tmp_path))] == [running.job_id, forever.job_id]
    [again] = executor.reattach(tags={"sim": "4"})
    again.kill()
    assert again.cancelled()
    assert executor.reattach(tags={"sim": "5"}) == []


def test_tasks_of_others_are_left_alone(executor: BalsamExecutor) -> None:
    other = BalsamExecutor(f"{executor.workflow_name}-other")
    other.apps = executor.apps
    task = other.submit(app_name="greet", app_args={"name": "x"})
    task.wait(DEADLINE)
    assert executor.reattach() == []
    assert [found.job_id for found in other.reattach()] == [task.job_id]
    del other.apps["greet"]
    assert other.reattach() == [], "whose app is not known here"
