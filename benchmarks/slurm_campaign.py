"""2,000 mixed jobs (serial, packed, MPI on two nodes) on four nodes of Slurm, with allocations lost in every way."""

from __future__ import annotations

import argparse
import sys

from benchmarks.campaign import SETTINGS, Campaign, Outcome
from benchmarks.harness import Report, main
from benchmarks.slurm import NODES, deployment_on_slurm, own_slurm

#: What is asked of the utilization.
GOAL = 0.9


def measure(options: argparse.Namespace) -> Report:
    outcomes = []
    for _ in range(options.rounds):
        with own_slurm() as cluster, deployment_on_slurm(**SETTINGS) as deployment:
            outcomes.append(Campaign(deployment, cluster, options.jobs, options.msec / 1000).run(options.timeout))
        tell(outcomes[-1])
    report = Report(f"{options.jobs:,} mixed jobs on {NODES} nodes of Slurm, with three allocations lost")
    wrong = [float(len(outcome.problems())) for outcome in outcomes]
    report.add("jobs that did not finish, or not exactly once", wrong, "", "0", not any(wrong))
    report.add("runs that were cut short, and done again", [outcome.cut_short.total() for outcome in outcomes], "")
    report.add("of these, done already when they were cut short", [len(outcome.unheard) for outcome in outcomes], "")
    used = [outcome.utilization for outcome in outcomes]
    report.add("utilization", [100 * share for share in used], "%", f"over {GOAL:.0%}", min(used) > GOAL)
    report.add("from the first start to the last end", [outcome.makespan for outcome in outcomes], "s")
    report.add(f"the work of all jobs, spread over {NODES} nodes", [outcome.ideal for outcome in outcomes], "s")
    return report


def tell(outcome: Outcome) -> None:
    """What happened, to stderr."""
    first = min(run.start for run in outcome.runs)
    lines = [f"utilization {outcome.utilization:.1%}, {outcome.makespan:.1f} s, of work {outcome.ideal:.1f} s"]
    for allocation in outcome.allocations:
        record, span = allocation.record, allocation.span
        ran = sum(job.batch_job_id == record.id for job in outcome.jobs)
        when = f"{span.start - first:6.0f} to {span.end - first:4.0f} s"
        lines.append(f"{record.id:3} {record.job_mode:6} {when}, {ran:5} jobs: {record.status_info.get('info', '')}")
    lines += [f"{number:3} runs cut short: {reason}" for reason, number in outcome.cut_short.items()]
    print("\n".join([*lines, *outcome.problems()]), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(measure, jobs=2000, msec=1500, timeout=600)
