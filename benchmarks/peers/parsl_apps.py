"""No-op Parsl apps on one executor, 2 workers: first result, throughput, round trips, clean-up. Prints JSON.

Usage: parsl_apps.py htex|balsam TASKS SINGLES
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time

import parsl
from parsl.config import Config
from parsl.executors.base import ParslExecutor


@parsl.python_app
def noop(number: int) -> int:
    return number


def make(kind: str) -> ParslExecutor:
    if kind == "balsam":
        from balsam_exec.executors import BalsamParslExecutor

        return BalsamParslExecutor(max_workers_per_node=2)
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider

    provider = LocalProvider(init_blocks=1, max_blocks=1)
    return HighThroughputExecutor(address="127.0.0.1", max_workers_per_node=2, provider=provider)


def main(kind: str, tasks: int, singles: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        os.environ["BALSAM_HOME"] = directory  # nothing is configured there: a service is started and ended, too
        executor = make(kind)
        began = time.perf_counter()
        kernel = parsl.load(Config(executors=[executor], run_dir=directory, usage_tracking=0))
        noop(0).result(timeout=120)
        first = time.perf_counter() - began
        for future in [noop(n) for n in range(20)]:  # both workers are up and warm
            future.result(timeout=120)
        latencies = []
        for number in range(singles):
            before = time.perf_counter()
            noop(number).result(timeout=60)
            latencies.append(time.perf_counter() - before)
        began = time.perf_counter()
        futures = [noop(n) for n in range(tasks)]
        if [future.result(timeout=300) for future in futures] != list(range(tasks)):
            raise SystemExit("wrong results")
        seconds = time.perf_counter() - began
        began = time.perf_counter()
        kernel.cleanup()
        cleanup = time.perf_counter() - began
    answer = {"version": parsl.__version__, "first": first, "rate": tasks / seconds, "cleanup": cleanup}
    print(json.dumps({**answer, "latencies": latencies}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
