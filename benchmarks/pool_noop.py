"""No-op Python tasks: BalsamPoolExecutor on SQLite, durable, beside Parsl's HighThroughputExecutor; 2 workers each.

One at a time for the latency, then thousands at once for the throughput.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from statistics import median, quantiles

from balsam_exec import BalsamPoolExecutor
from benchmarks.harness import Report, main, ratios, run_peer, take_turns

WORKERS = 2


def noop(number: int) -> int:
    return number


def rate(pool: Executor, tasks: int) -> float:
    """Tasks a second, from the first submit to the last result."""
    start = time.perf_counter()
    futures = [pool.submit(noop, n) for n in range(tasks)]
    if [future.result(timeout=300) for future in futures] != list(range(tasks)):
        raise SystemExit("wrong results")
    return tasks / (time.perf_counter() - start)


def latencies(pool: Executor, singles: int) -> list[float]:
    """Milliseconds from submit to result, on an idle pool."""
    found = []
    for number in range(singles):
        start = time.perf_counter()
        pool.submit(noop, number).result(timeout=60)
        found.append(1e3 * (time.perf_counter() - start))
    return found


def measure(options: argparse.Namespace) -> Report:
    singles: dict[str, list[float]] = {"BalsamPoolExecutor": [], "Parsl HTEX": [], "ProcessPoolExecutor": []}

    def one_of_ours(name: str, kind: Callable[..., Executor]) -> float:
        with kind(max_workers=WORKERS) as pool:
            rate(pool, 20)  # the workers are up and warm
            singles[name] += latencies(pool, options.singles)
            return rate(pool, options.tasks)

    def parsl() -> float:
        answer = run_peer("parsl_noop", options.tasks, options.singles)
        versions.add(f"Parsl {answer['version']}")
        singles["Parsl HTEX"] += [1e3 * seconds for seconds in answer["latencies"]]
        return float(answer["rate"])

    versions: set[str] = set()
    rates = take_turns(
        {
            "BalsamPoolExecutor": lambda: one_of_ours("BalsamPoolExecutor", BalsamPoolExecutor),
            "Parsl HTEX": parsl,
            "ProcessPoolExecutor": lambda: one_of_ours("ProcessPoolExecutor", ProcessPoolExecutor),
        },
        options.rounds,
    )
    report = Report(f"No-op Python tasks, {WORKERS} workers ({options.tasks:,} at once; {', '.join(versions)})")
    for name, values in rates.items():
        report.add(f"throughput, {name}", values, "tasks/s")
    against = ratios(rates["BalsamPoolExecutor"], rates["Parsl HTEX"])
    report.add("throughput, ours / Parsl", against, "x", "at least 2", median(against) >= 2)
    for name, values in singles.items():
        ours = name == "BalsamPoolExecutor"
        p50, p99 = median(values), quantiles(values, n=100)[98]
        report.add(f"one task, median, {name}", [p50], "ms", "under 10" if ours else "", p50 < 10 if ours else None)
        report.add(f"one task, p99, {name}", [p99], "ms", "under 30" if ours else "", p99 < 30 if ours else None)
    return report


if __name__ == "__main__":
    main(measure, tasks=5000, singles=300)
