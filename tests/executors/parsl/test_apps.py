"""What Parsl's users do with apps, all on one executor of a real deployment."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import parsl
import pytest
from parsl import bash_app, join_app, python_app
from parsl.app.errors import AppTimeout, BashExitFailure
from parsl.data_provider.files import File
from parsl.dataflow.errors import DependencyError, JoinError
from parsl.serialize.errors import DeserializationError, SerializationError

from balsam_exec.embedded import Deployment
from balsam_exec.executors import BalsamParslExecutor
from balsam_exec.model.errors import JobFailed, TooLarge
from tests.executors.parsl.conftest import jobs

DEADLINE = 60


@python_app
def double(x: int, parsl_resource_specification: dict[str, Any] | None = None) -> int:
    return 2 * x


@python_app
def fail(x: Any = None) -> None:
    raise KeyError("no such thing")


@bash_app
def say(words: str, stdout: str = "", stderr: str = "") -> str:
    return f"echo {words}; echo {words} in error >&2"


@bash_app
def gather(inputs: Any = (), outputs: Any = ()) -> str:
    return f"cat {' '.join(file.filepath for file in inputs)} > {outputs[0].filepath}"


@pytest.fixture(scope="module")
def executor(module_deployment: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BalsamParslExecutor]:
    """Loaded for all tests of this module, in a working directory of its own."""
    made = BalsamParslExecutor(service=module_deployment.service(), max_workers_per_node=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("cwd"))
        config = parsl.Config(executors=[made], usage_tracking=0, initialize_logging=False)
        with parsl.load(config):
            yield made


def test_dataflow(executor: BalsamParslExecutor) -> None:
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


def test_failures_are_those_of_the_app_with_its_traceback(
    executor: BalsamParslExecutor, deployment: Deployment
) -> None:
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


def test_what_cannot_travel(executor: BalsamParslExecutor) -> None:

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

    class TwoArguments(Exception):
        def __init__(self, first: str, second: str) -> None:
            super().__init__(f"{first} {second}")

    @python_app
    def raises_of_two() -> None:
        raise TwoArguments("one", "two")

    with pytest.raises(SerializationError):
        take(n for n in range(3)).result(DEADLINE)
    with pytest.raises(TypeError, match="generator"):
        generator().result(DEADLINE)
    with pytest.raises(TypeError, match="not this one"):
        raises().result(DEADLINE)
    with pytest.raises(DeserializationError, match="one two"):
        raises_of_two().result(DEADLINE)
    with pytest.raises(TooLarge):
        take(b"x" * 2_000_000).result(DEADLINE)
    assert take(1).result(DEADLINE) == 1


def test_bash_apps_files_and_cwd(executor: BalsamParslExecutor, tmp_path: Path) -> None:
    assert say("hello", stdout="out.txt", stderr="err.txt").result(DEADLINE) == 0
    assert Path("out.txt").read_text() == "hello\n", "tasks run where this program runs"
    assert "hello in error" in Path("err.txt").read_text()

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


def test_workers_do_not_wait_for_sqlalchemy_but_have_it(executor: BalsamParslExecutor) -> None:
    @python_app
    def look() -> tuple[bool, str]:
        import sys

        loaded = "sqlalchemy" in sys.modules
        import sqlalchemy.orm

        return loaded, sqlalchemy.__name__

    assert look().result(DEADLINE) == (False, "sqlalchemy")


def test_walltime(executor: BalsamParslExecutor) -> None:

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


def test_a_function_is_shipped_once(executor: BalsamParslExecutor, deployment: Deployment) -> None:
    text = os.urandom(20_000).hex()

    @python_app
    def length(x: int) -> int:
        return len(text) + x

    assert [length(n).result(DEADLINE) for n in range(5)] == [40_000 + n for n in range(5)]
    sizes = [len(job.arguments or b"") for job in jobs(deployment, executor)[-5:]]
    assert sizes[0] > 40_000, "the first time nobody knows that it comes again"
    assert max(sizes[1:]) < 1000
