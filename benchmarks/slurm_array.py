"""Tasks `true` on four nodes of Slurm: jobs in a serial allocation, beside the same tasks as a job array of Slurm."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import count
from statistics import median

from balsam_exec.api import ApplicationDefinition, BatchJob, Client
from balsam_exec.embedded import Deployment
from benchmarks.harness import Report, main, ratios, take_turns
from benchmarks.slurm import CORES, NODES, deployment_on_slurm, own_slurm
from tests.support.processes import wait_until
from tests.support.slurm import SlurmCluster

#: How often Slurm is asked whether the array has ended, in seconds; it takes its controller 8 ms.
LOOK = 0.2


def array_rate(cluster: SlurmCluster, tasks: int) -> float:
    """Tasks a second from the call of sbatch until the last has left the queue; each has one core."""
    start = time.perf_counter()
    array = f"--array=1-{tasks}"
    job = cluster.run("sbatch", "--parsable", array, "--ntasks=1", "--output=/dev/null", "--wrap=true").strip()
    while cluster.run("squeue", "--noheader", f"--jobs={job}"):
        time.sleep(LOOK)
    return tasks / (time.perf_counter() - start)


class Bench:
    """A site on Slurm, with an app that does nothing."""

    def __init__(self, deployment: Deployment, cluster: SlurmCluster) -> None:
        self._client = client = Client(deployment.service())
        self._cluster = cluster
        self._numbers = count()
        here = client.Site.objects.first()

        class Nothing(ApplicationDefinition):
            site = here
            command_template = "true"

        Nothing.sync()
        self._app = Nothing

    def allocation(self) -> BatchJob:
        return self._client.BatchJob.objects.create(num_nodes=NODES, wall_time_min=10, job_mode="serial")

    def run(self, tasks: int) -> float:
        """Seconds from the first submit to the end of the last; as many share a node as it has cores."""
        name = next(self._numbers)
        start = time.perf_counter()
        jobs = self._client.Job.objects.bulk_create(
            self._app.submit(f"{name}/{number}", node_packing_count=CORES, save=False) for number in range(tasks)
        )
        done, waiting = self._client.Job.objects.wait(jobs, timeout=300)
        if waiting or {job.state for job in done} != {"JOB_FINISHED"}:
            raise SystemExit("not all jobs are finished")
        return time.perf_counter() - start

    def end(self, allocation: BatchJob) -> None:
        allocation.cancel()
        allocation.wait(60)
        self.wait_idle()

    def wait_idle(self) -> None:
        wait_until(lambda: self._cluster.node_states() == ["idle"] * NODES, 60, "Slurm to be idle")

    def warm_rate(self, tasks: int) -> float:
        """Tasks a second in an allocation that is up, as a campaign has it."""
        allocation = self.allocation()
        sessions = self._client.service.sessions
        wait_until(lambda: len(sessions(batch_job_id=[allocation.id]).results) == NODES, 60, "the launchers")
        self.run(NODES * CORES)  # they are up and warm
        took = self.run(tasks)
        self.end(allocation)
        return tasks / took

    def cold_rate(self, tasks: int) -> float:
        """Tasks a second, from the request of the allocation on."""
        start = time.perf_counter()
        allocation = self.allocation()
        self.run(tasks)
        took = time.perf_counter() - start
        self.end(allocation)
        return tasks / took


def measure(options: argparse.Namespace) -> Report:
    tasks = options.tasks
    with own_slurm() as cluster, deployment_on_slurm() as deployment:
        bench = Bench(deployment, cluster)

        def array() -> float:
            rate = array_rate(cluster, tasks)
            bench.wait_idle()
            return rate

        sides: dict[str, Callable[[], float]] = {
            "ours, in an allocation that is up": lambda: bench.warm_rate(tasks),
            "ours, with the start of the allocation": lambda: bench.cold_rate(tasks),
            "job array of Slurm": array,
        }
        rates = take_turns(sides, options.rounds)
        version = cluster.run("sbatch", "--version").strip()
    report = Report(f"{tasks:,} tasks `true` on {NODES} nodes of {CORES} cores (all on this machine; {version})")
    for name, values in rates.items():
        report.add(name, values, "tasks/s")
    warm, cold, theirs = rates.values()
    against = ratios(warm, theirs)
    report.add("ours, up / job array", against, "x", "at least 5", median(against) >= 5)
    report.add("ours, with the start / job array", ratios(cold, theirs), "x")
    return report


if __name__ == "__main__":
    main(measure, tasks=1000)
