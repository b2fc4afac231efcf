"""No-op Parsl apps on BalsamParslExecutor (SQLite, durable) beside Parsl's HighThroughputExecutor; 2 workers.

From `parsl.load` to the first result, one at a time, then thousands at once, and the clean-up.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from statistics import median

from benchmarks.harness import PEERS_PYTHON, Report, main, ratios, run_peer, take_turns

OURS, THEIRS = "BalsamParslExecutor", "HighThroughputExecutor"


def measure(options: argparse.Namespace) -> Report:
    first: defaultdict[str, list[float]] = defaultdict(list)
    cleanup: defaultdict[str, list[float]] = defaultdict(list)
    singles: defaultdict[str, list[float]] = defaultdict(list)
    versions: set[str] = set()

    def run(name: str) -> float:
        kind, python = ("balsam", sys.executable) if name == OURS else ("htex", PEERS_PYTHON)
        answer = run_peer("parsl_apps", kind, options.tasks, options.singles, python=python)
        versions.add(f"Parsl {answer['version']}")
        first[name].append(answer["first"])
        cleanup[name].append(answer["cleanup"])
        singles[name] += [1e3 * seconds for seconds in answer["latencies"]]
        return float(answer["rate"])

    rates = take_turns({OURS: lambda: run(OURS), THEIRS: lambda: run(THEIRS)}, options.rounds)
    report = Report(f"No-op Parsl apps, 2 workers ({options.tasks:,} at once; {', '.join(sorted(versions))})")
    for name, values in rates.items():
        report.add(f"throughput, {name}", values, "apps/s")
    against = ratios(rates[OURS], rates[THEIRS])
    report.add("throughput, ours / Parsl", against, "x", "at least 1", median(against) >= 1)
    for name, values in singles.items():
        goal = ("under 12", median(values) < 12) if name == OURS else ("", None)
        report.add(f"one app, median, {name}", [median(values)], "ms", *goal)
    for name, values in first.items():
        goal = ("under 4", median(values) < 4) if name == OURS else ("", None)
        report.add(f"parsl.load to the first result, {name}", values, "s", *goal)
    for name, values in cleanup.items():
        goal = ("under 2", median(values) < 2) if name == OURS else ("", None)
        report.add(f"clean-up, {name}", values, "s", *goal)
    return report


if __name__ == "__main__":
    main(measure, tasks=5000, singles=200)
