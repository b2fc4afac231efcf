"""Nodes that fail under an allocation of a real Slurm: what ran there has not failed, and is done by the next one."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from balsam_exec.model.batch_jobs import BatchJobRecord
from balsam_exec.model.states import BatchJobState, JobState
from tests.site.test_nodes import Cluster

pytestmark = pytest.mark.timeout(180)

#: The first time it waits to be cut short.
ONCE = "if mkdir begun 2>/dev/null; then exec sleep 300; fi"


@pytest.fixture
def cluster(at_slurm: Callable[..., Cluster]) -> Cluster:
    bench = at_slurm(Cluster)
    bench.set(mpi_launcher="srun")
    return bench


def fail(cluster: Cluster, node: str) -> None:
    cluster.cluster.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")


def processes_of(cluster: Cluster, allocation: BatchJobRecord) -> list[int]:
    """All that run in the allocation."""
    mark = f"SLURM_JOB_ID={cluster.service.batch_job(allocation.id).scheduler_id}".encode()
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (directory / "environ").read_bytes().split(b"\0"):
                found.append(int(directory.name))
    return found


def was_cut_short(cluster: Cluster, jobs: list[int]) -> None:
    """Each of them, and maybe twice: what srun tells of a lost node is known before the allocation's end."""
    ends = cluster.service.events(job_id=jobs, from_state="RUNNING").results
    assert {(event.subject_id, event.to_state) for event in ends} == {(job, "RUN_TIMEOUT") for job in jobs}


def test_another_node_than_the_launchers_fails(cluster: Cluster) -> None:
    half = {"node_packing_count": 2}
    jobs = cluster.submit(ONCE, 1, num_nodes=2, **half)
    cluster.agent()
    allocation = cluster.request(2)
    cluster.wait(jobs, JobState.RUNNING)
    jobs += cluster.submit(ONCE, 2, **half)
    cluster.wait(jobs, JobState.RUNNING)
    fail(cluster, cluster.cluster.nodes[1])
    ended = cluster.wait_state(allocation, BatchJobState.FINISHED, timeout=60)
    assert "NODE_FAIL" in ended.status_info["info"]
    cluster.wait(jobs, JobState.RESTART_READY)
    was_cut_short(cluster, jobs)


def test_the_node_of_the_launcher_fails(cluster: Cluster) -> None:
    """Its processes do nothing any more; the agent sees the end of the batch job long before the lease runs out."""
    jobs = cluster.submit(ONCE, 2, node_packing_count=2)
    cluster.agent()
    allocation = cluster.request(1)
    cluster.wait(jobs, JobState.RUNNING)
    lost = processes_of(cluster, allocation)
    for pid in lost:
        os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        fail(cluster, cluster.cluster.nodes[0])
        ended = cluster.wait_state(allocation, BatchJobState.FINISHED, timeout=60)
        assert "NODE_FAIL" in ended.status_info["info"]
        cluster.wait(jobs, JobState.RESTART_READY, timeout=20)
        assert time.monotonic() - began < 40, "the lease has run out"
    finally:
        for pid in lost:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    was_cut_short(cluster, jobs)
    cluster.request(1, idle_ttl_sec=0)  # on another node
    cluster.wait(jobs, JobState.JOB_FINISHED)


def test_preempted(cluster: Cluster) -> None:
    """Slurm ends the launchers of all nodes for somebody more important."""
    jobs = cluster.submit(ONCE, 2)
    cluster.agent()
    allocation = cluster.request(2, job_mode="serial")
    cluster.wait(jobs, JobState.RUNNING)
    urgent = ["--partition=urgent", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=true"]
    cluster.cluster.run("sbatch", *urgent)
    ended = cluster.wait_state(allocation, BatchJobState.FINISHED, timeout=60)
    assert "PREEMPTED" in ended.status_info["info"]
    cluster.wait(jobs, JobState.RESTART_READY)
    was_cut_short(cluster, jobs)
    cluster.request(1, idle_ttl_sec=0)
    cluster.wait(jobs, JobState.JOB_FINISHED)
