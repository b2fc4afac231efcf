"""What hooks cost: the round trip of one job, and the rate of many, beside the same app without hooks; 2 slots."""

from __future__ import annotations

import argparse
import time
from functools import partial
from statistics import median

from balsam_exec.api import ApplicationDefinition, Client
from balsam_exec.embedded import Deployment
from benchmarks.harness import Report, main, ratios, take_turns

#: Seconds that a preprocess and a postprocess hook may add to a round trip.
ALLOWED = 0.1


class Bench:
    """A deployment with a running allocation, and an app with and without hooks."""

    def __init__(self, deployment: Deployment) -> None:
        self._client = client = Client(deployment.service())
        here = client.Site.objects.first()

        class Plain(ApplicationDefinition):
            site = here
            command_template = "true"

        class Hooked(ApplicationDefinition):
            site = here
            command_template = "true"

            def preprocess(self) -> None:
                self.job.state = "PREPROCESSED"

            def postprocess(self) -> None:
                self.job.data = {"parsed": True}
                self.job.state = "POSTPROCESSED"

        self.apps = {"without": Plain, "with": Hooked}
        client.BatchJob.objects.create(
            site_id=here.id, num_nodes=1, wall_time_min=30, job_mode="serial", idle_ttl_sec=600
        )
        for name in self.apps:
            self.run(name, 20)

    def round_trip(self, name: str) -> float:
        """Seconds from `submit` to the end of one job, with nothing else to do."""
        start = time.perf_counter()
        self.apps[name].submit(f"{name}/one").result(timeout=60)
        return time.perf_counter() - start

    def run(self, name: str, count: int) -> float:
        """Jobs a second from bulk_create to the last end."""
        start = time.perf_counter()
        app = self.apps[name]
        jobs = self._client.Job.objects.bulk_create(
            app.submit(f"{name}/{number}", node_packing_count=2, save=False) for number in range(count)
        )
        done, waiting = self._client.Job.objects.wait(jobs, timeout=600)
        if waiting or {job.state for job in done} != {"JOB_FINISHED"}:
            raise SystemExit("not all jobs are finished")
        return count / (time.perf_counter() - start)


def measure(options: argparse.Namespace) -> Report:
    with Deployment.start(temporary=True) as deployment:
        bench = Bench(deployment)
        alone = take_turns({name: partial(bench.round_trip, name) for name in bench.apps}, options.single)
        rates = take_turns({name: partial(bench.run, name, options.tasks) for name in bench.apps}, options.rounds)
    report = Report(f"Hooks: a preprocess and a postprocess; one job, and {options.tasks:,} at once")
    for name, values in alone.items():
        report.add(f"round trip {name} hooks", [1000 * value for value in values], "ms")
    added = [1000 * (a - b) for a, b in zip(alone["with"], alone["without"], strict=True)]
    report.add("added by the hooks", added, "ms", f"under {1000 * ALLOWED:.0f}", median(added) < 1000 * ALLOWED)
    for name, values in rates.items():
        report.add(f"rate {name} hooks", values, "jobs/s")
    report.add("with / without", ratios(rates["with"], rates["without"]), "x")
    return report


if __name__ == "__main__":
    main(measure, single=50, tasks=2000)
