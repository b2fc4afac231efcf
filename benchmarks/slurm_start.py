"""From `submit_allocation` to the first task, on an idle Slurm: the agent is up, the task waits."""

from __future__ import annotations

import argparse
import time
from statistics import median

from balsam_exec.api import ApplicationDefinition, BatchJob, Client
from balsam_exec.embedded import Deployment
from balsam_exec.executors import BalsamExecutor
from balsam_exec.model.batch_jobs import JobMode
from balsam_exec.model.events import Kind
from benchmarks.harness import Report, main
from benchmarks.slurm import NODES, deployment_on_slurm, own_slurm, site_of
from tests.support.processes import wait_until
from tests.support.slurm import SlurmCluster

#: Seconds until the first task runs.
ALLOWED = 3.0
#: The script of an allocation says when it starts.
CLOCK = "date +%s.%N >{{ site_dir }}/started\nexec {{ launcher }}"


class Bench:
    """Asks for allocations, one after the other, each for a task that says when it starts."""

    def __init__(self, deployment: Deployment, cluster: SlurmCluster) -> None:
        self._client = client = Client(deployment.service())
        self._site = site_of(deployment.home)
        self._cluster = cluster
        self._executor = BalsamExecutor(service=deployment.service())
        here = client.Site.objects.first()

        class Clock(ApplicationDefinition):
            site = here
            command_template = "date +%s.%N"

        self._app = Clock
        template = self._site.job_template.read_text()
        self._site.job_template.write_text(template.replace("exec {{ launcher }}", CLOCK))
        self._rounds = 0

    def start(self, num_nodes: int, job_mode: JobMode) -> tuple[float, float, float]:
        """Seconds from `submit_allocation` until Slurm has it, until its script starts, until the task runs."""
        self._rounds += 1
        job = self._app.submit(f"clock/{self._rounds}", save=False)
        job.save()
        asked = time.time()
        allocation = self._executor.submit_allocation(num_nodes=num_nodes, wall_time_min=5, job_mode=job_mode)
        _, waiting = self._client.Job.objects.wait([job], timeout=60)
        if waiting:
            raise SystemExit("the task did not run")
        task = float((self._site.data / job.workdir / "job.out").read_text())
        script = float((self._site.path / "started").read_text())
        submitted = self._submitted(allocation)
        allocation.cancel()
        allocation.wait(60)
        wait_until(lambda: self._cluster.node_states() == ["idle"] * NODES, 60, "Slurm to be idle")
        return submitted - asked, script - asked, task - asked

    def _submitted(self, allocation: BatchJob) -> float:
        """When the service was told."""
        events = self._client.service.events
        told = events(kind=[Kind.BATCH_JOB], subject_id=[allocation.id], from_state=["pending_submission"])
        return told.results[0].timestamp.timestamp()


def measure(options: argparse.Namespace) -> Report:
    with own_slurm() as cluster, deployment_on_slurm() as deployment:
        bench = Bench(deployment, cluster)
        bench.start(1, "mpi")  # files are in the page cache
        one = [bench.start(1, "mpi") for _ in range(options.starts)]
        all_nodes = [bench.start(NODES, "serial") for _ in range(options.rounds)]
    report = Report("From `submit_allocation` to the first task, on an idle Slurm")
    submitted, script, task = zip(*one, strict=True)
    report.add("the service knows that Slurm has it", submitted, "s")
    report.add("its script starts", script, "s")
    report.add("the first task runs", task, "s", f"under {ALLOWED:g}", median(task) < ALLOWED)
    report.add("the first task runs, the slowest", [max(task)], "s", f"under {ALLOWED:g}", max(task) < ALLOWED)
    report.add(f"the first task runs, {NODES} nodes, serial", [times[-1] for times in all_nodes], "s")
    return report


if __name__ == "__main__":
    main(measure, starts=10)
