"""What Parsl's users do, on a real deployment: apps of all kinds, dependencies, files, errors, retries, memoization."""

from __future__ import annotations

import http.server
import os
import threading
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from parsl import bash_app, join_app, python_app
from parsl.app.errors import AppTimeout, BashExitFailure
from parsl.data_provider.files import File
from parsl.data_provider.http import HTTPInTaskStaging
from parsl.dataflow.errors import DependencyError, JoinError
from parsl.dataflow.memoization import BasicMemoizer
from parsl.executors.errors import InvalidResourceSpecification
from parsl.serialize.errors import SerializationError

from balsam_exec.embedded import Deployment
from balsam_exec.executors import BalsamParslExecutor
from balsam_exec.executors.parsl import TaskLost
from balsam_exec.executors.parsl.executor import TAG
from balsam_exec.model.errors import JobFailed, TooLarge
from balsam_exec.model.jobs import JobRecord
from tests.executors.parsl.conftest import Load

DEADLINE = 60


@python_app
def double(x: int, parsl_resource_specification: dict[str, Any] | None = None) -> int:
    return 2 * x


@python_app
def fail(x: Any = None) -> None:
    raise KeyError("no such thing")


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


@bash_app
def say(words: str, stdout: str = "", stderr: str = "") -> str:
    return f"echo {words}; echo {words} in error >&2"


@bash_app
def gather(inputs: Any = (), outputs: Any = ()) -> str:
    return f"cat {' '.join(file.filepath for file in inputs)} > {outputs[0].filepath}"


def jobs(deployment: Deployment, executor: BalsamParslExecutor) -> list[JobRecord]:
    return deployment.service().jobs(tags={TAG: executor.name}, limit=1000).results


def test_dataflow(load: Load) -> None:
    load(BalsamParslExecutor(max_workers_per_node=2))

    @join_app
    def fibonacci(n: int) -> Any:
        return double(n) if n < 2 else add(fibonacci(n - 1), fibonacci(n - 2))

    @python_app
    def add(a: int, b: int) -> int:
        return a + b

    chain = double(double(double(1)))
    assert chain.result(DEADLINE) == 8
    assert [future.result(DEADLINE) for future in map(double, range(20))] == [2 * n for n in range(20)]
    assert fibonacci(5).result(DEADLINE) == 2 * 5


def test_failures_are_those_of_the_app_with_its_traceback(load: Load, deployment: Deployment) -> None:
    executor = BalsamParslExecutor()
    load(executor)
    with pytest.raises(KeyError, match="no such thing") as caught:
        fail().result(DEADLINE)
    frames = [(frame.name, frame.line) for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert ("fail", 'raise KeyError("no such thing")') in frames
    with pytest.raises(DependencyError):
        double(fail()).result(DEADLINE)

    @join_app
    def joins() -> Any:
        return [double(1), fail()]

    with pytest.raises(JoinError):
        joins().result(DEADLINE)

    @python_app
    def leave() -> None:
        raise SystemExit(3)

    with pytest.raises(JobFailed, match="exit code 3"):
        leave().result(DEADLINE)
    ended = jobs(deployment, executor)
    assert {job.state for job in ended} == {"FAILED", "JOB_FINISHED"}, "the service, too, knows what failed"


def test_what_cannot_travel(load: Load) -> None:
    load(BalsamParslExecutor())

    @python_app
    def take(x: Any) -> int:
        return 1

    @python_app
    def generator() -> Any:
        return (n for n in range(3))

    class Unpicklable(Exception):
        def __reduce__(self) -> Any:
            raise TypeError("not this one")

    @python_app
    def raises() -> None:
        raise Unpicklable

    with pytest.raises(SerializationError):
        take(n for n in range(3)).result(DEADLINE)
    with pytest.raises(TypeError, match="generator"):
        generator().result(DEADLINE)
    with pytest.raises(TypeError, match="not this one"):
        raises().result(DEADLINE)
    with pytest.raises(TooLarge):
        take(b"x" * 2_000_000).result(DEADLINE)
    assert take(1).result(DEADLINE) == 1


def test_bash_apps_files_and_cwd(load: Load, tmp_path: Path) -> None:
    load(BalsamParslExecutor())
    assert say("hello", stdout="out.txt", stderr="err.txt").result(DEADLINE) == 0
    assert (tmp_path / "out.txt").read_text() == "hello\n", "tasks run where this program runs"
    assert "hello in error" in (tmp_path / "err.txt").read_text()

    @bash_app
    def write(number: int, outputs: Any = ()) -> str:
        return f"echo {number} > {outputs[0].filepath}"

    @bash_app
    def exits(code: int) -> str:
        return f"exit {code}"

    parts = [write(n, outputs=[File(str(tmp_path / f"part{n}"))]) for n in range(3)]
    whole = gather(inputs=[part.outputs[0] for part in parts], outputs=[File(str(tmp_path / "whole"))])
    assert Path(whole.outputs[0].result(DEADLINE).filepath).read_text() == "0\n1\n2\n"
    with pytest.raises(BashExitFailure) as caught:
        exits(3).result(DEADLINE)
    assert caught.value.exitcode == 3


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


def test_walltime(load: Load) -> None:
    load(BalsamParslExecutor())

    @python_app
    def spin(walltime: float = 0) -> None:
        import time

        while True:
            time.sleep(0.01)

    @bash_app
    def sleep(walltime: float = 0) -> str:
        return "exec sleep 30"

    for app in (spin, sleep):
        with pytest.raises(AppTimeout):
            app(walltime=0.2).result(DEADLINE)
    assert double(1).result(DEADLINE) == 2


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
    import parsl
    from parsl.utils import get_all_checkpoints

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
    with pytest.raises(JobFailed, match="one rank"):
        double(1, parsl_resource_specification={"num_ranks": 2}).result(DEADLINE)
    with pytest.raises(InvalidResourceSpecification):
        BalsamParslExecutor(resource_specification={"memory": 1})


def test_two_executors_side_by_side(load: Load) -> None:
    load(BalsamParslExecutor("left"), BalsamParslExecutor("right"))
    left = {future.result(DEADLINE) for future in [on_the_left() for _ in range(4)]}
    right = {future.result(DEADLINE) for future in [on_the_right() for _ in range(4)]}
    assert len(left) == len(right) == 1
    assert left != right, "each has its own blocks"


def test_a_function_is_shipped_once(load: Load, deployment: Deployment) -> None:
    executor = BalsamParslExecutor()
    load(executor)
    text = os.urandom(20_000).hex()

    @python_app
    def length(x: int) -> int:
        return len(text) + x

    assert [length(n).result(DEADLINE) for n in range(5)] == [40_000 + n for n in range(5)]
    sizes = [len(job.arguments or b"") for job in jobs(deployment, executor)]
    assert sizes[0] > 40_000, "the first time nobody knows that it comes again"
    assert max(sizes[1:]) < 1000
