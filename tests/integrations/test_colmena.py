"""colmena's ParslTaskServer on our executor: colmena's own tests of it, and a loop that steers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from colmena.queue import PipeQueues
from colmena.task_server import ParslTaskServer
from colmena.task_server.tests import test_parsl as theirs
from colmena.thinker import BaseThinker, agent
from parsl.config import Config
from proxystore.connectors.file import FileConnector
from proxystore.store import Store, register_store, unregister_store

from balsam_exec.embedded import Deployment
from balsam_exec.executors import BalsamParslExecutor
from balsam_exec.model.batch_jobs import BatchJobSpec
from balsam_exec.model.states import BatchJobState

#: The server is a fork of this process, and what colmena does there makes pydantic warn.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, nothing_left_running: None) -> Iterator[Deployment]:
    with Deployment.start(tmp_path_factory.mktemp("home")) as deployment:
        yield deployment


@pytest.fixture(scope="module")
def allocation(deployment: Deployment) -> None:
    """One for all of colmena's tests: each starts a server of its own."""
    spec = BatchJobSpec(site_id=deployment.site_id, num_nodes=1, wall_time_min=10, job_mode="serial")
    deployment.service().create_batch_job(spec)


# -- colmena's tests, with the executor replaced ---------------------------------------------------------------------

server_and_queue = theirs.server_and_queue


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store[Any]]:
    """For all tests, as the allocation is: its workers know it by its name."""
    with Store("store", FileConnector(str(tmp_path_factory.mktemp("store"))), metrics=True) as store:
        register_store(store)
        yield store
        unregister_store(store.name)


@pytest.fixture
def config(deployment: Deployment, allocation: None, tmp_path: Path) -> Config:
    executor = BalsamParslExecutor(service=deployment.service(), max_workers_per_node=2, allocate=False)
    return Config(executors=[executor], run_dir=str(tmp_path / "run"))


def unhurried(test: Callable[..., None]) -> Callable[..., None]:
    """The test without its time limit, which is for a machine that does nothing else."""
    test.pytestmark = []  # type: ignore[attr-defined]
    return test


test_kill = unhurried(theirs.test_kill)
test_run_simple = unhurried(theirs.test_run_simple)
test_timeout = unhurried(theirs.test_timeout)
test_error_handling = unhurried(theirs.test_error_handling)
test_bash = unhurried(theirs.test_bash)
test_resources = unhurried(theirs.test_resources)
test_proxy = unhurried(theirs.test_proxy)
test_bad_method_name = unhurried(theirs.test_bad_method_name)


# -- a loop that steers ------------------------------------------------------------------------------------------


class Descent(BaseThinker):
    """Looks for the lowest point, in ever narrower grids around the best one so far."""

    def __init__(self, queues: PipeQueues) -> None:
        super().__init__(queues)
        self.heights: dict[float, float] = {}
        self.failures: dict[float, str] = {}

    @agent
    def steer(self) -> None:
        centre, spacing = 0.0, 4.0
        for _ in range(4):
            guesses = [centre + k * spacing for k in (-2, -1, 1, 2)]
            for x in guesses:
                self.queues.send_inputs(x, method="height")
            for _ in guesses:
                self.learn(self.queues.get_result(timeout=100))
            centre = min(self.heights, key=self.heights.__getitem__)
            spacing /= 2

    def learn(self, result: Any) -> None:
        (x,) = result.args
        if result.success:
            self.heights[x] = result.value
        else:
            self.failures[x] = result.failure_info.exception


def test_a_thinker_steers(deployment: Deployment, tmp_path: Path) -> None:
    def height(x: float) -> float:
        if x < -7:
            raise ValueError("off the map")
        return (x - 3) ** 2

    service = deployment.service()
    before = {job.id for job in service.batch_jobs().results}
    executor = BalsamParslExecutor(service=service, max_workers_per_node=2)
    queues = PipeQueues()
    server = ParslTaskServer([height], queues, Config(executors=[executor], run_dir=str(tmp_path / "run")))
    server.start()
    try:
        thinker = Descent(queues)
        thinker.run()
    finally:
        queues.send_kill_signal()
        server.join(timeout=60)
    assert server.exitcode == 0
    assert min(thinker.heights, key=thinker.heights.__getitem__) == 3
    assert len(thinker.heights) == 10
    assert list(thinker.failures) == [-8]
    assert "off the map" in thinker.failures[-8]
    (block,) = [job for job in service.batch_jobs().results if job.id not in before]
    assert block.state in (BatchJobState.PENDING_DELETION, BatchJobState.FINISHED)
