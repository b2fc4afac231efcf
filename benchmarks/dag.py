"""A DAG of no-op Python apps, one job before and one after all others, beside as many independent ones; 2 workers."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import count
from statistics import median
from typing import Any

from balsam_exec.api import ApplicationDefinition, Client, Job
from balsam_exec.embedded import Deployment
from benchmarks.harness import Report, main, ratios, take_turns

WORKERS = 2
Make = Callable[..., Job]


def independent(make: Make, jobs: int) -> list[Job]:
    return [make() for _ in range(jobs)]


def fan_out_and_in(make: Make, jobs: int) -> list[Job]:
    first = make()
    middle = [make(parent_ids=[first]) for _ in range(jobs - 2)]
    return [first, *middle, make(parent_ids=middle)]


def measure(options: argparse.Namespace) -> Report:
    with Deployment.start(temporary=True) as deployment:
        client = Client(deployment.service())
        here = client.Site.objects.first()
        assert here is not None

        class Nothing(ApplicationDefinition):
            site = here

            def run(self) -> None: ...

        Nothing.sync()
        client.BatchJob.objects.create(
            site_id=here.id, num_nodes=1, wall_time_min=30, job_mode="serial", idle_ttl_sec=120
        )
        number = count()

        def make(**fields: Any) -> Job:
            return Nothing.submit(f"dag/{next(number)}", node_packing_count=WORKERS, save=False, **fields)

        def rate(shape: Callable[[Make, int], list[Job]], jobs: int) -> float:
            """Jobs a second from bulk_create until all have finished."""
            made = shape(make, jobs)
            start = time.perf_counter()
            done, waiting = client.Job.objects.wait(client.Job.objects.bulk_create(made), timeout=600)
            seconds = time.perf_counter() - start
            if waiting or {job.state for job in done} != {"JOB_FINISHED"}:
                raise SystemExit("not all jobs are finished")
            return jobs / seconds

        rate(fan_out_and_in, 200)  # the workers are up and warm
        rates = take_turns(
            {
                "independent": lambda: rate(independent, options.jobs),
                "fan-out and fan-in": lambda: rate(fan_out_and_in, options.jobs),
            },
            options.rounds,
        )
    report = Report(f"{options.jobs:,} no-op Python apps in an allocation, {WORKERS} workers")
    for name, values in rates.items():
        report.add(name, values, "jobs/s")
    against = ratios(rates["fan-out and fan-in"], rates["independent"])
    report.add("fan-out and fan-in / independent", against, "x", "at least 0.7", median(against) >= 0.7)
    return report


if __name__ == "__main__":
    main(measure, jobs=10_000)
