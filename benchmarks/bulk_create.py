"""`Job.objects.bulk_create` of many jobs over HTTP, from the list of unsaved jobs to the list of saved ones."""

from __future__ import annotations

import argparse
import time
from statistics import median

from balsam_exec.api import Client
from benchmarks.databases import make_app, services
from benchmarks.harness import Report, main, take_turns

GOALS = {"SQLite": 8000, "PostgreSQL": 5000}


def rate(client: Client, app_id: int, count: int) -> float:
    jobs = [client.Job(f"sweep/{n}", app_id=app_id, tags={"campaign": "bench"}) for n in range(count)]
    start = time.perf_counter()
    created = client.Job.objects.bulk_create(jobs)
    seconds = time.perf_counter() - start
    if len({job.id for job in created}) != count:
        raise SystemExit("not all jobs were created")
    return count / seconds


def measure(options: argparse.Namespace) -> Report:
    with services() as running:
        clients = {name: (Client(live.service), make_app(live)[1]) for name, live in running.items()}
        for client, app_id in clients.values():
            rate(client, app_id, 100)  # warm
        sides = {
            name: lambda client=client, app_id=app_id: rate(client, app_id, options.jobs)
            for name, (client, app_id) in clients.items()
        }
        rates = take_turns(sides, options.rounds)
    report = Report(f"bulk_create of {options.jobs:,} jobs over HTTP")
    for name, values in rates.items():
        goal = GOALS[name]
        report.add(name, values, "jobs/s", f"over {goal:,}", median(values) > goal)
    return report


if __name__ == "__main__":
    main(measure, jobs=10_000)
