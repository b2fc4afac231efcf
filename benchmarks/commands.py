"""`true` in its own directory with a job.out, through the Python API; beside HyperQueue and a bare loop; 2 slots."""

from __future__ import annotations

import argparse
import time
from statistics import median

from balsam_exec.api import ApplicationDefinition, Client
from balsam_exec.embedded import Deployment
from benchmarks import bare_loop
from benchmarks.harness import Report, main, ratios, run_peer, take_turns

SLOTS = bare_loop.SLOTS


def balsam_rate(tasks: int) -> float:
    """Jobs a second from bulk_create to the last JOB_FINISHED, in a running allocation."""
    with Deployment.start(temporary=True) as deployment:
        client = Client(deployment.service())
        here = client.Site.objects.first()

        class Nothing(ApplicationDefinition):
            site = here
            command_template = "true"

        client.BatchJob.objects.create(
            site_id=here.id, num_nodes=1, wall_time_min=10, job_mode="serial", idle_ttl_sec=60
        )

        def run(name: str, count: int) -> None:
            jobs = [Nothing.submit(f"{name}/{n}", node_packing_count=SLOTS, save=False) for n in range(count)]
            done, waiting = client.Job.objects.wait(client.Job.objects.bulk_create(jobs), timeout=300)
            if waiting or {job.state for job in done} != {"JOB_FINISHED"}:
                raise SystemExit("not all jobs are finished")

        Nothing.sync()
        run("warm-up", 20)
        start = time.perf_counter()
        run("measured", tasks)
        return tasks / (time.perf_counter() - start)


def measure(options: argparse.Namespace) -> Report:
    tasks = options.tasks
    versions: set[str] = set()

    def hyperqueue(files: int) -> float:
        answer = run_peer("hyperqueue_commands", tasks, files)
        versions.add(f"HyperQueue {answer['version']}")
        return float(answer["rate"])

    rates = take_turns(
        {
            "ours": lambda: balsam_rate(tasks),
            "HyperQueue, stdout and stderr files (its default)": lambda: hyperqueue(2),
            "HyperQueue, one output file": lambda: hyperqueue(1),
            "bare loop": lambda: bare_loop.rate(tasks),
        },
        options.rounds,
    )
    report = Report(f"{tasks:,} commands `true`, {SLOTS} slots ({', '.join(versions)})")
    for name, values in rates.items():
        report.add(name, values, "jobs/s")
    peer = ratios(rates["ours"], rates["HyperQueue, stdout and stderr files (its default)"])
    report.add("ours / HyperQueue (its default)", peer, "x", "at least 1", median(peer) >= 1)
    report.add("ours / HyperQueue, one file", ratios(rates["ours"], rates["HyperQueue, one output file"]), "x")
    floor = ratios(rates["ours"], rates["bare loop"])
    report.add("ours / bare loop", floor, "x", "aim: 0.6", median(floor) >= 0.6)
    return report


if __name__ == "__main__":
    main(measure, tasks=2000)
