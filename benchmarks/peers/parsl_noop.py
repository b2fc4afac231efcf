"""No-op tasks through Parsl's HighThroughputExecutor, submitted to the executor itself, 2 workers. Prints JSON.

Usage: parsl_noop.py TASKS SINGLES
"""

from __future__ import annotations

import json
import sys
import tempfile
import time

import parsl
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider


def noop(number: int) -> int:
    return number


def main(tasks: int, singles: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        executor = HighThroughputExecutor(
            label="htex",
            address="127.0.0.1",
            max_workers_per_node=2,
            provider=LocalProvider(init_blocks=1, max_blocks=1),
        )
        config = Config(executors=[executor], run_dir=directory, strategy="none", usage_tracking=0)
        with parsl.load(config):
            for future in [executor.submit(noop, {}, n) for n in range(20)]:  # both workers are up and warm
                future.result(timeout=120)
            start = time.perf_counter()
            futures = [executor.submit(noop, {}, n) for n in range(tasks)]
            if [future.result(timeout=300) for future in futures] != list(range(tasks)):
                raise SystemExit("wrong results")
            seconds = time.perf_counter() - start
            latencies = []
            for number in range(singles):
                before = time.perf_counter()
                executor.submit(noop, {}, number).result(timeout=60)
                latencies.append(time.perf_counter() - before)
    print(json.dumps({"version": parsl.__version__, "rate": tasks / seconds, "latencies": latencies}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
