"""A campaign of mixed jobs on the four nodes of a Slurm, while allocations are lost in every way there is.

Two allocations are there at the beginning; the queue maintainer of the site sees to all others. The second one is
cancelled by `scancel`, the first one reaches its wall time, and a node of a later one fails.
"""

from __future__ import annotations

import random
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any, TypeVar

from balsam_exec.api import Client
from balsam_exec.client.pages import every
from balsam_exec.embedded import Deployment
from balsam_exec.model.apps import AppSpec, ParameterSpec
from balsam_exec.model.batch_jobs import BatchJobRecord, BatchJobSpec, JobMode
from balsam_exec.model.events import EventRecord, Kind
from balsam_exec.model.jobs import JobRecord, JobSpec
from balsam_exec.model.states import BATCH_JOB_ENDED, BatchJobState, JobState
from benchmarks.slurm import NODES, site_of
from benchmarks.utilization import Run, Span, runs_of, utilization
from tests.support.slurm import SlurmCluster

T = TypeVar("T")

#: Nodes of each allocation.
SIZE = 2
#: For a site on which a campaign is to run: allocations that wait take over at once from those that end.
SETTINGS: Mapping[str, Any] = {
    "gpus": 4,
    "mpi_launcher": "srun",
    "idle_ttl_sec": 5,
    "cancel_grace_sec": 5,
    "queue_maintainer": {
        "enabled": True,
        "num_queued_jobs": 3,
        "num_nodes": SIZE,
        "wall_time_min": 30,
        "quiet_sec": 0.5,
        "service_period": 1,
    },
}
#: Seconds between two looks at how far it is.
LOOK = 0.2
#: Seconds between the end of a job's work and that of its run, in which the end may stay unheard.
CLOSE = 1.0

#: A job appends to this file of its workdir when it is done, and not before.
COMPLETED = "completed"
SLEEP = (
    'from=$EPOCHREALTIME; sleep {{ seconds }} && echo "$BALSAM_JOB_ID $from $EPOCHREALTIME $SLURMD_NODENAME '
    f'${{CUDA_VISIBLE_DEVICES:--}}" >>{COMPLETED}'
)
MPI_SLEEP = shlex.join([sys.executable, str(Path(__file__).with_name("mpi_sleep.py"))]) + " {{ seconds }}"


@dataclass(frozen=True)
class Mixed:
    """Jobs of one kind."""

    name: str
    part: float  #: of all jobs
    command: str
    needs: Mapping[str, Any]


KINDS = (
    Mixed("serial", 0.84, SLEEP, {"node_packing_count": 8}),
    Mixed("packed", 0.125, SLEEP, {"node_packing_count": 4, "threads_per_rank": 2, "gpus_per_rank": 1}),
    Mixed("mpi", 0.035, MPI_SLEEP, {"num_nodes": 2, "node_packing_count": 4, "launch_params": {"--mpi": "pmi2"}}),
)


@dataclass(frozen=True)
class Completion:
    """What a job says of a run that it completed."""

    job_id: int
    start: float
    end: float
    nodes: tuple[str, ...]
    gpus: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> list[Completion]:
        """All that the job of a workdir says."""
        lines = path.read_text().splitlines() if path.exists() else []
        return [cls._of(*line.split()) for line in lines]

    @classmethod
    def _of(cls, job_id: str, start: str, end: str, nodes: str, gpus: str) -> Completion:
        devices = () if gpus == "-" else tuple(gpus.split(","))
        return cls(int(job_id), float(start), float(end), tuple(nodes.split("+")), devices)


@dataclass(frozen=True)
class Allocation:
    """One of the campaign, and when it had its nodes by Slurm's own records, which are of whole seconds."""

    record: BatchJobRecord
    span: Span


@dataclass(frozen=True)
class Outcome:
    """All that is known of a campaign when it is over."""

    jobs: Sequence[JobRecord]
    events: Sequence[EventRecord]  #: of the jobs
    completions: Sequence[Completion]
    allocations: Sequence[Allocation]

    @property
    def runs(self) -> list[Run]:
        return runs_of(self.events, {job.id: job.num_nodes / job.node_packing_count for job in self.jobs})

    @property
    def utilization(self) -> float:
        """While work remained."""
        return utilization(self.runs, [allocation.span for allocation in self.allocations])

    @property
    def makespan(self) -> float:
        """From the first start to the last end, in seconds."""
        return max(run.end for run in self.runs) - min(run.start for run in self.runs)

    @property
    def ideal(self) -> float:
        """The makespan if the work that jobs did were spread over all nodes, in seconds."""
        shares = {job.id: job.num_nodes / job.node_packing_count for job in self.jobs}
        return sum((done.end - done.start) * shares[done.job_id] for done in self.completions) / NODES

    @property
    def cut_short(self) -> Counter[str]:
        """The runs that were lost, by the reason that their events give."""
        return Counter(run.reason for run in self.runs if run.state is JobState.RUN_TIMEOUT)

    @property
    def unheard(self) -> list[Completion]:
        """What was done just as its run was cut short, so that nobody heard of it: it is done again. srun tells of the
        end of its ranks some time later; what runs on a node that Slurm takes for failed goes on for a moment."""
        lost = [run for run in self.runs if run.state is JobState.RUN_TIMEOUT]
        return [
            done for done in self.completions if any(_within(done, run) and run.end - done.end < CLOSE for run in lost)
        ]

    def problems(self) -> list[str]:
        """What is not as it should be: every job finished, once, and on nodes of its own."""
        return [*self._of_states(), *self._of_runs(), *self._of_completions(), *self._of_gpus()]

    def _of_states(self) -> Iterator[str]:
        for job in self.jobs:
            if job.state is not JobState.JOB_FINISHED:
                yield f"job {job.id} is {job.state}"

    def _of_runs(self) -> Iterator[str]:
        ends: dict[int, list[JobState]] = {job.id: [] for job in self.jobs}
        for run in self.runs:
            ends[run.job_id].append(run.state)
        started = Counter(event.subject_id for event in self.events if event.to_state == JobState.RUNNING)
        for job_id, states in ends.items():
            if states.count(JobState.RUN_DONE) != 1 or set(states) - {JobState.RUN_DONE, JobState.RUN_TIMEOUT}:
                yield f"the runs of job {job_id} ended as {', '.join(states)}"
            if started[job_id] != len(states):
                yield f"job {job_id} was started {started[job_id]} times, and ended {len(states)} times"

    def _of_completions(self) -> Iterator[str]:
        done = {run.job_id: run for run in self.runs if run.state is JobState.RUN_DONE}
        unheard = self.unheard
        heard = [completion for completion in self.completions if completion not in unheard]
        found = Counter(completion.job_id for completion in heard)
        needs = {job.id: job.num_nodes for job in self.jobs}
        for job_id in needs:
            if found[job_id] != 1:
                yield f"job {job_id} did its work {found[job_id]} times: {self._story_of(job_id)}"
        for completion in heard:
            run = done.get(completion.job_id)
            if run is not None and not (_within(completion, run) and completion.end <= run.end):
                yield f"job {completion.job_id} did its work outside of its run: {self._story_of(completion.job_id)}"
            if len(set(completion.nodes)) != needs[completion.job_id]:
                yield f"job {completion.job_id} ran on {completion.nodes}, and not on {needs[completion.job_id]} nodes"

    def _story_of(self, job_id: int) -> str:
        """When it worked, and when it ran, in seconds since it first did."""
        runs = [run for run in self.runs if run.job_id == job_id]
        first = min((run.start for run in runs), default=0.0)

        def at(span: Completion | Run) -> str:
            return f"{span.start - first:.2f}-{span.end - first:.2f}"

        work = [at(done) for done in self.completions if done.job_id == job_id]
        ran = [f"{at(run)} {run.state} {run.reason}".strip() for run in runs]
        return f"work {', '.join(work)}; runs {', '.join(ran)}"

    def _of_gpus(self) -> Iterator[str]:
        users: dict[tuple[str, str], list[Completion]] = {}
        for completion in self.completions:
            for gpu in completion.gpus:
                users.setdefault((*completion.nodes, gpu), []).append(completion)
        for (node, gpu), completions in users.items():
            for first, second in pairwise(sorted(completions, key=lambda completion: completion.start)):
                if second.start < first.end:
                    yield f"jobs {first.job_id} and {second.job_id} had GPU {gpu} of {node} at once"


def _within(completion: Completion, run: Run) -> bool:
    """Whether this is what it did in that run."""
    return completion.job_id == run.job_id and run.start <= completion.start <= run.end


class Campaign:
    """So many jobs, of `seconds` each in the mean, at the site of a deployment that has our SETTINGS."""

    def __init__(self, deployment: Deployment, cluster: SlurmCluster, jobs: int, seconds: float) -> None:
        self._service = Client(deployment.service()).service
        self._site_id = deployment.site_id
        self._site = site_of(deployment.home)
        self._cluster = cluster
        self._jobs = jobs
        self._seconds = seconds

    def run(self, timeout: float) -> Outcome:
        """Raises TimeoutError."""
        deadline = time.monotonic() + timeout
        self._submit()
        short, cancelled = self._request("mpi", wall_time_min=1), self._request("serial", wall_time_min=30)
        self._wait(lambda: self._finished() > 0.2, deadline, "a fifth of the jobs to finish")
        self._cluster.run("scancel", self._scheduler_id(cancelled))
        self._wait(lambda: self._finished() > 0.5, deadline, "half of the jobs to finish")
        self._fail_a_node(deadline)
        self._wait(lambda: self._has_ended(short), deadline, "the first allocation to reach its wall time")
        self._wait(lambda: self._finished() == 1, deadline, "all jobs to finish")
        return self._outcome()

    def _submit(self) -> None:
        rng = random.Random(1)
        specs = []
        for kind in KINDS:
            app = self._service.put_app(
                AppSpec(
                    site_id=self._site_id,
                    name=kind.name,
                    command_template=kind.command,
                    parameters={"seconds": ParameterSpec()},
                )
            )
            for number in range(round(kind.part * self._jobs)):
                seconds = self._seconds * rng.uniform(0.67, 1.33)
                specs.append(
                    JobSpec(
                        app_id=app.id,
                        workdir=f"{kind.name}/{number}",
                        parameters={"seconds": f"{seconds:.3f}"},
                        **kind.needs,
                    )
                )
        rng.shuffle(specs)
        self._service.create_jobs(specs)
        self._jobs = len(specs)

    def _request(self, job_mode: JobMode, wall_time_min: int) -> BatchJobRecord:
        spec = BatchJobSpec(site_id=self._site_id, num_nodes=SIZE, job_mode=job_mode, wall_time_min=wall_time_min)
        return self._service.create_batch_job(spec)

    def _fail_a_node(self, deadline: float) -> None:
        """Of an allocation of the queue maintainer whose jobs run; it is there again when the allocation is gone."""
        victim = self._wait(self._at_work, deadline, "an allocation with jobs")
        nodes = self._cluster.run("squeue", "-h", "-o", "%N", "-j", self._scheduler_id(victim)).strip()
        node = self._cluster.run("scontrol", "show", "hostnames", nodes).split()[-1]
        self._cluster.run("scontrol", "update", f"nodename={node}", "state=down", "reason=it failed")
        self._wait(lambda: self._has_ended(victim), deadline, "the allocation to be lost")
        with suppress(CalledProcessError):  # it has come back by itself, as its daemon is well
            self._cluster.run("scontrol", "update", f"nodename={node}", "state=resume")

    def _at_work(self) -> BatchJobRecord | None:
        for allocation in self._allocations(BatchJobState.RUNNING):
            at_work = self._service.count_jobs(batch_job_id=[allocation.id], state=[JobState.RUNNING])
            if allocation.origin == "queue_maintainer" and at_work > SIZE:
                return allocation
        return None

    def _scheduler_id(self, allocation: BatchJobRecord) -> str:
        found = self._service.batch_job(allocation.id).scheduler_id
        assert found is not None
        return found

    def _has_ended(self, allocation: BatchJobRecord) -> bool:
        return self._service.batch_job(allocation.id).state in BATCH_JOB_ENDED

    def _allocations(self, *states: BatchJobState) -> list[BatchJobRecord]:
        return self._service.batch_jobs(site_id=[self._site_id], state=list(states)).results

    def _finished(self) -> float:
        """Which part of the jobs has."""
        counts = {found.state: found.count for found in self._service.job_states(site_id=[self._site_id])}
        return counts.get(JobState.JOB_FINISHED, 0) / self._jobs

    def _wait(self, look: Callable[[], T | None], deadline: float, what: str) -> T:
        while not (found := look()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited for {what}: {self._service.job_states(site_id=[self._site_id])}")
            time.sleep(LOOK)
        return found

    def _outcome(self) -> Outcome:
        jobs = list(every(self._service.jobs, site_id=[self._site_id]))
        events = list(every(self._service.events, kind=[Kind.JOB], site_id=[self._site_id]))
        completions = [done for job in jobs for done in Completion.read(self._site.data / job.workdir / COMPLETED)]
        allocations = [self._as_slurm_has_it(record) for record in self._allocations() if record.start_time]
        return Outcome(jobs, events, completions, allocations)

    def _as_slurm_has_it(self, record: BatchJobRecord) -> Allocation:
        shown = self._cluster.run("scontrol", "-o", "show", "job", str(record.scheduler_id))
        values = dict(word.split("=", 1) for word in shown.split() if "=" in word)
        start, end = (
            time.mktime(time.strptime(values[name], "%Y-%m-%dT%H:%M:%S")) for name in ("StartTime", "EndTime")
        )
        return Allocation(record, Span(start, end, record.num_nodes))
