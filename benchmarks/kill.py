"""How soon the kill of a running job is confirmed: a `sleep`, which needs no grace; and all of a query at once."""

from __future__ import annotations

import argparse
import time
from statistics import median

from balsam_exec.api import ApplicationDefinition, Client, Job
from balsam_exec.embedded import Deployment
from balsam_exec.model.states import JobState
from benchmarks.harness import Report, main

#: Seconds from the kill of a running job to its confirmation.
ALLOWED = 0.3
#: Jobs that run side by side.
SIDE_BY_SIDE = 20


class Bench:
    """A deployment with a running allocation, and an app that runs until it is killed."""

    def __init__(self, deployment: Deployment) -> None:
        self._client = client = Client(deployment.service())
        here = client.Site.objects.first()

        class Sleep(ApplicationDefinition):
            site = here
            command_template = "sleep 1000"

        self._app = Sleep
        client.BatchJob.objects.create(site_id=here.id, num_nodes=1, wall_time_min=30, idle_ttl_sec=600)

    def kill(self, count: int) -> float:
        """Seconds from the kill of so many running jobs to the confirmation of the last."""
        jobs = self._client.Job.objects.bulk_create(
            self._app.submit(f"sleep/{number}", node_packing_count=SIDE_BY_SIDE, save=False) for number in range(count)
        )
        self._until(jobs, JobState.RUNNING)
        start = time.perf_counter()
        self._client.Job.objects.filter(id=[job.id for job in jobs]).kill()
        done, waiting = self._client.Job.objects.wait(jobs, timeout=60)
        took = time.perf_counter() - start
        if waiting or {job.state for job in done} != {JobState.USER_KILLED}:
            raise SystemExit("not all jobs are killed")
        return took

    def _until(self, jobs: list[Job], state: JobState) -> None:
        deadline = time.monotonic() + 60
        while self._client.Job.objects.filter(id=[job.id for job in jobs], state=state).count() < len(jobs):
            if time.monotonic() > deadline:
                raise SystemExit(f"not all jobs are {state}")
            time.sleep(0.01)


def measure(options: argparse.Namespace) -> Report:
    with Deployment.start(temporary=True) as deployment:
        bench = Bench(deployment)
        bench.kill(1)
        single = [bench.kill(1) for _ in range(options.single)]
        many = [bench.kill(SIDE_BY_SIDE) for _ in range(options.rounds)]
    report = Report("Kill of a running `sleep`, confirmed when nothing is left of it")
    worst = max(single)
    report.add(
        "one job", [1000 * took for took in single], "ms", f"under {1000 * ALLOWED:.0f}", median(single) < ALLOWED
    )
    report.add("one job, the slowest", [1000 * worst], "ms", f"under {1000 * ALLOWED:.0f}", worst < ALLOWED)
    report.add(f"{SIDE_BY_SIDE} jobs by one query, the last", [1000 * took for took in many], "ms")
    return report


if __name__ == "__main__":
    main(measure, single=50)
