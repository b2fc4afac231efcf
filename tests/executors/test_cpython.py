"""CPython's own tests of executors, run on BalsamPoolExecutor.

They come with CPython's test package (Debian: libpython3.11-testsuite). Two of them want a task's print on the caller's
stdout, which a job's output is not; one names its executor's module; that one is here in our words.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import threading
import unittest
from types import ModuleType
from typing import Any

import cloudpickle
import pytest
import test

from balsam_exec import BalsamPoolExecutor
from balsam_exec.embedded import Deployment

pytestmark = pytest.mark.timeout(180)


def _suite() -> dict[str, type]:
    """The mixins of CPython's suite by name: one module up to 3.11, a package since 3.12."""
    debian = f"/usr/lib/python{sys.version_info[0]}.{sys.version_info[1]}/test"
    if debian not in test.__path__:
        test.__path__.append(debian)
    whole = "test.test_concurrent_futures"
    parts = ("",) if sys.version_info < (3, 12) else (".executor", ".test_wait", ".test_as_completed", ".test_shutdown")
    found: dict[str, type] = {}
    for part in parts:
        try:
            module: ModuleType = importlib.import_module(whole + part)
        except ImportError as error:
            pytest.fail(f"CPython's test package is not installed (apt-get install libpython3.11-testsuite): {error}")
        cloudpickle.register_pickle_by_value(module)  # a worker's interpreter may lack the test package
        found.update({k: v for k, v in vars(module).items() if isinstance(v, type)})
    return found


SUITE = _suite()
Base: Any = SUITE.get("BaseTestCase") or importlib.import_module("test.test_concurrent_futures.util").BaseTestCase
WANT_STDOUT = "a job's output goes to its job.out, not to the caller's stdout"


class OnPool:
    """What CPython's ExecutorMixin does, for our executor."""

    executor_type = BalsamPoolExecutor
    worker_count = 2
    executor: Any

    def setUp(self) -> None:
        super().setUp()  # type: ignore[misc]
        self.executor = self.executor_type(max_workers=self.worker_count)

    def tearDown(self) -> None:
        self.executor.shutdown(wait=True)
        self.executor = None
        super().tearDown()  # type: ignore[misc]


@pytest.mark.usefixtures("deployment")
class TestExecutor(OnPool, SUITE["ExecutorTest"], Base):  # type: ignore[misc]
    """On a service that is configured."""


@pytest.mark.usefixtures("deployment")
class TestWait(OnPool, SUITE["WaitTests"], Base):  # type: ignore[misc]
    pass


@pytest.mark.usefixtures("deployment")
class TestAsCompleted(OnPool, SUITE["AsCompletedTests"], Base):  # type: ignore[misc]
    pass


class TestShutdown(OnPool, SUITE["ExecutorShutdownTest"], Base):  # type: ignore[misc]
    """With a temporary deployment, which `shutdown` takes down."""

    test_interpreter_shutdown = unittest.skip(WANT_STDOUT)(SUITE["ExecutorShutdownTest"].test_interpreter_shutdown)
    test_hang_gh83386 = unittest.skip(WANT_STDOUT)(SUITE["ExecutorShutdownTest"].test_hang_gh83386)
    test_hang_gh94440 = None  # of process pools alone

    def test_submit_after_interpreter_shutdown(self) -> None:
        program = """if True:
            import atexit
            @atexit.register
            def run_last():
                try:
                    t.submit(id, None)
                except RuntimeError:
                    print("runtime-error")
                    raise
            from balsam_exec import BalsamPoolExecutor
            t = BalsamPoolExecutor(2)
            t.submit(id, 42).result()
            """
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
        assert "RuntimeError: cannot schedule new futures" in done.stderr
        assert done.stdout.strip() == "runtime-error"


def test_threads_end_with_the_executor(deployment: Deployment) -> None:
    before = set(threading.enumerate())
    with BalsamPoolExecutor(2) as pool:
        assert pool.submit(pow, 2, 5).result(timeout=60) == 32
    assert set(threading.enumerate()) <= before
