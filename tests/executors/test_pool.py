"""BalsamPoolExecutor on a real deployment: what users of concurrent.futures do with an executor."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from threading import Lock

import pytest

from balsam_exec import BalsamPoolExecutor
from balsam_exec.embedded import Deployment
from balsam_exec.model.base import MAX_ENTITY
from balsam_exec.model.batch_jobs import BatchJobPatch, BatchJobSpec
from balsam_exec.model.errors import (
    DoesNotExist,
    InvalidRequest,
    NotFound,
    PayloadError,
    TooLarge,
    WorkerDied,
)
from balsam_exec.model.states import BatchJobState

DEADLINE = 60


class TwoArguments(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


def test_lambdas_closures_and_callables(deployment: Deployment) -> None:
    offset = 10
    with BalsamPoolExecutor(2) as pool:
        assert pool.submit(lambda x: x + offset, 1).result(DEADLINE) == 11
        assert pool.submit(partial(divmod, 7), 2).result(DEADLINE) == (3, 1)
        assert pool.submit("abc".upper).result(DEADLINE) == "ABC"
        assert pool.submit(dict, a=1, fn=2, self=3).result(DEADLINE) == {"a": 1, "fn": 2, "self": 3}


def test_map_in_order_with_chunks_and_lazily(deployment: Deployment) -> None:
    with BalsamPoolExecutor(2) as pool:
        assert list(pool.map(lambda x, y: x * y, range(20), range(20), chunksize=6)) == [i * i for i in range(20)]
        assert list(pool.map(abs, [])) == []
        assert list(pool.map(abs, [], chunksize=3)) == []
        with pytest.raises(ValueError, match="chunksize"):
            pool.map(abs, [1], chunksize=0)


def test_exceptions_come_back_as_themselves_with_the_remote_traceback(deployment: Deployment) -> None:
    def fails() -> None:
        raise KeyError("no such thing")

    def two() -> None:
        raise TwoArguments("a", "b")

    with BalsamPoolExecutor(2) as pool:
        error = pool.submit(fails).exception(DEADLINE)
        assert type(error) is KeyError
        assert "in fails" in str(error.__cause__)
        other = pool.submit(two).exception(DEADLINE)  # fails to unpickle: never a hang
        assert other is not None
        assert "a b" in str(other)


def test_what_cannot_travel_is_the_exception_of_its_future(deployment: Deployment) -> None:
    with BalsamPoolExecutor(2) as pool:
        assert isinstance(pool.submit(len, Lock()).exception(DEADLINE), PayloadError)
        too_large = pool.submit(len, b"x" * (MAX_ENTITY + 1)).exception(DEADLINE)
        assert isinstance(too_large, TooLarge)
        assert str(MAX_ENTITY) in str(too_large)
        unpicklable = pool.submit(lambda: __import__("threading").Lock()).exception(DEADLINE)
        assert "serialize" in str(unpicklable)
        assert pool.submit(pow, 2, 3).result(DEADLINE) == 8


def test_a_call_that_kills_its_worker_fails_alone(deployment: Deployment) -> None:
    with BalsamPoolExecutor(2) as pool:
        before, death, after = pool.submit(pow, 2, 3), pool.submit(os._exit, 7), pool.submit(pow, 2, 4)
        assert isinstance(death.exception(DEADLINE), WorkerDied)
        assert "7" in str(death.exception())
        assert (before.result(DEADLINE), after.result(DEADLINE)) == (8, 16)


def test_never_more_at_once_than_max_workers(deployment: Deployment) -> None:
    def interval() -> tuple[float, float]:
        start = time.time()
        time.sleep(0.1)
        return start, time.time()

    with BalsamPoolExecutor(3) as pool:
        intervals = [f.result(DEADLINE) for f in [pool.submit(interval) for _ in range(12)]]
    at_once = [sum(s <= start < e for s, e in intervals) for start, _ in intervals]
    assert max(at_once) == 3


def test_resources_and_tags_of_single_calls(deployment: Deployment) -> None:
    with BalsamPoolExecutor(2, resources={"threads_per_rank": 2}) as pool:
        assert pool.submit(pow, 2, 2).result(DEADLINE) == 4
        wide = pool.with_resources(node_packing_count=1, wall_time_min=5, tags={"kind": "wide"})
        future = wide.submit(pow, 3, 3)
        assert future.result(DEADLINE) == 27
        job = deployment.service().job(future.job_id)  # type: ignore[attr-defined]
        assert (job.threads_per_rank, job.node_packing_count, job.wall_time_min) == (2, 1, 5)
        assert job.tags == {"pool": pool.name, "kind": "wide"}
        with pytest.raises(InvalidRequest, match="gpus_per_rank"):
            pool.with_resources(gpus=1)
    with pytest.raises(InvalidRequest, match="num_nodes"):
        BalsamPoolExecutor(2, resources={"num_nodes": 0})


def test_in_an_allocation_of_the_users(deployment: Deployment) -> None:
    service = deployment.service()
    with BalsamPoolExecutor(2, allocate=False) as pool:
        future = pool.submit(pow, 2, 3)
        spec = BatchJobSpec(site_id=deployment.site_id, num_nodes=1, wall_time_min=5, job_mode="serial")
        batch_job = service.create_batch_job(spec)
        try:
            assert future.result(DEADLINE) == 8
            assert service.job(future.job_id).batch_job_id == batch_job.id  # type: ignore[attr-defined]
        finally:
            service.patch_batch_job(batch_job.id, BatchJobPatch(state=BatchJobState.PENDING_DELETION))


def test_what_is_printed_is_in_the_pools_job_out(deployment: Deployment) -> None:
    with BalsamPoolExecutor(2) as pool:
        pool.submit(print, "hello from a task").result(DEADLINE)
        out = deployment.home / "site" / "data" / "pools" / pool.name / "job.out"
        assert "hello from a task" in out.read_text()


def test_asyncio(deployment: Deployment) -> None:
    async def main(pool: BalsamPoolExecutor) -> list[int]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(pool, pow, 2, n) for n in range(8)))

    with BalsamPoolExecutor(2) as pool:
        assert asyncio.run(asyncio.wait_for(main(pool), DEADLINE)) == [2**n for n in range(8)]


def test_many_threads_submit(deployment: Deployment) -> None:
    with BalsamPoolExecutor(2) as pool, ThreadPoolExecutor(8) as threads:
        futures = [
            future
            for batch in threads.map(lambda i: [pool.submit(pow, i, 2) for _ in range(25)], range(8))
            for future in batch
        ]
        assert sum(f.result(DEADLINE) for f in as_completed(futures, DEADLINE)) == 25 * sum(i * i for i in range(8))


def test_mistakes(deployment: Deployment) -> None:
    with pytest.raises(DoesNotExist, match="nowhere"):
        BalsamPoolExecutor(2, site="nowhere")
    with pytest.raises(NotFound, match="never-was"):
        BalsamPoolExecutor.reattach("never-was", allocate=False)
    with pytest.raises(ValueError, match="max_workers"):
        BalsamPoolExecutor(0)


CLIENT = """
import os, signal, time
from balsam_exec import BalsamPoolExecutor

class Point:
    def __init__(self, x): self.x = x

def scale(i):
    time.sleep(0.05)
    return Point(10 * i)

if __name__ == "__main__":
    pool = BalsamPoolExecutor(2, name="survivor")
    futures = [pool.submit(scale, i) for i in range(30)]
    assert type(futures[0].result()) is Point
    while any(f.job_id is None for f in futures): time.sleep(0.01)
    print("submitted", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_reattach_after_the_client_was_killed(deployment: Deployment, tmp_path: Path) -> None:
    script = tmp_path / "client.py"
    script.write_text(CLIENT)
    client = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=DEADLINE)
    assert client.stdout == "submitted\n", client.stderr
    with BalsamPoolExecutor.reattach("survivor", 2) as pool:
        values = [future.result(DEADLINE) for future in pool.futures]
        assert [value.x for value in values] == [10 * i for i in range(30)]
        assert pool.submit(pow, 2, 5).result(DEADLINE) == 32


def test_a_temporary_deployment_is_gone_with_its_executor(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        from balsam_exec import BalsamPoolExecutor
        def double(x):
            return 2 * x
        with BalsamPoolExecutor() as pool:
            print(sum(pool.map(double, range(10))))
    """)
    script = tmp_path / "script.py"
    script.write_text(program)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=DEADLINE)
    assert done.stdout == "90\n", done.stderr
    assert done.stderr == ""
