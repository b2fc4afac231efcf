"""Configurations of Parsl on a real deployment: staging, retries, memoization, resources, several executors."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import parsl
import pytest
from parsl import python_app
from parsl.data_provider.files import File
from parsl.data_provider.http import HTTPInTaskStaging
from parsl.dataflow.memoization import BasicMemoizer
from parsl.executors.errors import InvalidResourceSpecification
from parsl.utils import get_all_checkpoints

from balsam_exec.embedded import Deployment
from balsam_exec.executors import BalsamParslExecutor
from balsam_exec.executors.parsl import TaskLost
from tests.executors.parsl.conftest import Load, jobs

DEADLINE = 60


@python_app
def double(x: int, parsl_resource_specification: dict[str, Any] | None = None) -> int:
    return 2 * x


@python_app
def fail_until(marker: str, tries: int) -> int:
    """Fails until it has been tried so often."""
    with open(marker, "a+") as file:
        file.write("x")
        file.seek(0)
        count = len(file.read())
    if count < tries:
        raise RuntimeError(f"try {count}")
    return count


@python_app
def die() -> None:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


@python_app(cache=True)
def noted(path: str, x: int) -> int:
    with open(path, "a") as file:
        file.write(f"{x}\n")
    return x


@python_app(executors=["left"])
def on_the_left() -> str:
    import os

    return os.environ["BALSAM_BATCH_JOB_ID"]


@python_app(executors=["right"])
def on_the_right() -> str:
    import os

    return os.environ["BALSAM_BATCH_JOB_ID"]


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """The URL of a web server over tmp_path/web."""
    (tmp_path / "web").mkdir()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("in_task", [False, True])
def test_files_are_staged_from_the_web(load: Load, tmp_path: Path, web: str, in_task: bool) -> None:
    (tmp_path / "web/numbers.txt").write_text("3\n1\n2\n")
    staging = [HTTPInTaskStaging()] if in_task else None
    load(BalsamParslExecutor(working_dir=str(tmp_path / "staged"), storage_access=staging))

    @python_app
    def sort(inputs: Any = ()) -> list[str]:
        with open(inputs[0]) as file:
            return sorted(file.read().split())

    assert sort(inputs=[File(f"{web}/numbers.txt")]).result(DEADLINE) == ["1", "2", "3"]
    assert (tmp_path / "staged/numbers.txt").exists()


def test_retries_count_what_the_app_and_what_the_machine_did(load: Load, tmp_path: Path) -> None:
    seen: list[str] = []

    def cost(error: Exception, record: Any) -> float:
        seen.append(type(error).__name__)
        return 1

    load(BalsamParslExecutor(), retries=2, retry_handler=cost)
    assert fail_until(str(tmp_path / "three"), 3).result(DEADLINE) == 3
    with pytest.raises(RuntimeError, match="try 3"):
        fail_until(str(tmp_path / "four"), 4).result(DEADLINE)
    seen.clear()
    with pytest.raises(TaskLost, match="SIGKILL"):
        die().result(DEADLINE)
    assert seen == ["TaskLost"] * 3


def test_memoization_and_checkpoints(load: Load, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    load(BalsamParslExecutor(), memoizer=BasicMemoizer(checkpoint_mode="task_exit"))
    assert [noted(str(notes), n).result(DEADLINE) for n in (1, 2, 1)] == [1, 2, 1]
    assert notes.read_text() == "1\n2\n"
    parsl.dfk().cleanup()

    files = get_all_checkpoints(str(tmp_path / "runinfo"))
    load(BalsamParslExecutor(), memoizer=BasicMemoizer(checkpoint_files=files))
    assert [noted(str(notes), n).result(DEADLINE) for n in (2, 3)] == [2, 3]
    assert notes.read_text() == "1\n2\n3\n", "only what is new was run"


def test_resource_specifications_reach_the_jobs(load: Load, deployment: Deployment) -> None:
    usual = {"wall_time_min": 3, "tags": {"kind": "usual"}}
    executor = BalsamParslExecutor(max_workers_per_node=4, resource_specification=usual)
    load(executor)
    assert executor.workers_per_node == 4
    futures = [double(1), double(2, parsl_resource_specification={"cores": 2, "tags": {"kind": "wide"}})]
    assert [future.result(DEADLINE) for future in futures] == [2, 4]
    found = {job.tags["kind"]: job for job in jobs(deployment, executor)}
    assert (found["usual"].wall_time_min, found["usual"].node_packing_count) == (3, 4)
    wide = found["wide"]
    assert (wide.threads_per_rank, wide.node_packing_count, wide.wall_time_min) == (2, 2, 0)
    with pytest.raises(InvalidResourceSpecification):
        double(1, parsl_resource_specification={"memory": 1}).result(DEADLINE)
    assert double(3, parsl_resource_specification={"num_ranks": 2, "tags": {"kind": "mpi"}}).result(DEADLINE) == 6
    assert jobs(deployment, executor)[-1].ranks_per_node == 2
    with pytest.raises(InvalidResourceSpecification):
        BalsamParslExecutor(resource_specification={"memory": 1})


def test_two_executors_side_by_side(load: Load) -> None:
    load(BalsamParslExecutor("left"), BalsamParslExecutor("right"))
    left = {future.result(DEADLINE) for future in [on_the_left() for _ in range(4)]}
    right = {future.result(DEADLINE) for future in [on_the_right() for _ in range(4)]}
    assert len(left) == len(right) == 1
    assert left != right, "each has its own blocks"
