"""Who works on which nodes of an allocation, and the launchers of several crews; hosts are pretended, and all here."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from balsam_exec.launcher.crews import Crew, crew_of, crews_of
from balsam_exec.model.base import now
from balsam_exec.model.batch_jobs import BatchJobPatch, BatchJobRecord, BatchJobSpec, Partition
from balsam_exec.model.jobs import JobSpec
from balsam_exec.model.states import BatchJobState, JobState
from tests.launcher.test_process import Allocation, allocation_of, proper_of
from tests.support.processes import wait_gone, wait_until
from tests.support.services import LiveService

HOSTS = tuple("abcde")


def batch_job(**fields: object) -> BatchJobRecord:
    values = {"id": 1, "site_id": 1, "num_nodes": 5, "wall_time_min": 5, "state": BatchJobState.RUNNING}
    return BatchJobRecord.model_validate({**values, "created": now(), **fields})


# --- the plan


def test_without_partitions_all_nodes_are_one_crew() -> None:
    job = batch_job(job_mode="serial", filter_tags={"a": "b"})
    assert crews_of(job, HOSTS) == [Crew(0, "serial", {"a": "b"}, HOSTS)]


def test_partitions_have_nodes_in_their_order_and_the_rest_works_as_the_batch_job_says() -> None:
    parts = [Partition(job_mode="serial", num_nodes=2), Partition(num_nodes=1, filter_tags={"x": "y"})]
    job = batch_job(partitions=parts, job_mode="serial", filter_tags={"a": "b"})
    crews = crews_of(job, HOSTS)
    assert crews == [
        Crew(0, "serial", {}, ("a", "b")),
        Crew(1, "mpi", {"x": "y"}, ("c",)),
        Crew(2, "serial", {"a": "b"}, ("d", "e")),
    ]
    assert [crew_of(job, crew.index, crew.hosts) for crew in crews] == crews


@pytest.mark.parametrize(("hosts", "sizes"), [("abc", [2, 1]), ("ab", [2]), ("abcd", [2, 2])])
def test_only_what_has_nodes_is_a_crew(hosts: str, sizes: list[int]) -> None:
    """An allocation may have fewer nodes than were asked for, and the partitions may take all of them."""
    job = batch_job(num_nodes=4, partitions=[Partition(num_nodes=2), Partition(num_nodes=2)])
    assert [len(crew.hosts) for crew in crews_of(job, hosts)] == sizes


@pytest.mark.parametrize(
    ("crew", "here", "fits"),
    [
        (Crew(0, "mpi", {}, ("a", "b")), "a", True),
        (Crew(0, "mpi", {}, ("a", "b")), None, True),
        (Crew(0, "serial", {}, ("a",)), "a", True),
        (Crew(0, "serial", {}, ("a", "b")), "a", False),
        (Crew(0, "serial", {}, ("b",)), "a", False),
        (Crew(0, "serial", {}, ("b",)), None, False),
    ],
)
def test_what_needs_no_other_process(crew: Crew, here: str | None, fits: bool) -> None:
    assert crew.fits_one_launcher(here) is fits


# --- launchers that mpiexec starts


@pytest.fixture
def pretended(
    start_service: Callable[[str], LiveService], sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Allocation]:
    """An allocation of PBS on two hosts, where MPICH starts processes of both on this machine."""
    nodes = tmp_path / "nodes"
    nodes.write_text("one.cluster\ntwo.cluster\n")
    monkeypatch.setenv("PBS_JOBID", "1.cluster")
    monkeypatch.setenv("PBS_NODEFILE", str(nodes))
    monkeypatch.setenv("HYDRA_LAUNCHER", "fork")
    monkeypatch.setenv("PATH", f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}")
    with allocation_of(start_service(sqlite_url), tmp_path / "site") as made:
        yield made


def request(allocation: Allocation, **fields: object) -> None:
    values = {"site_id": allocation.site_id, "num_nodes": 2, "wall_time_min": 10, "idle_ttl_sec": 60, **fields}
    allocation.batch_job = allocation.service.create_batch_job(BatchJobSpec.model_validate(values)).id
    allocation.service.patch_batch_job(allocation.batch_job, BatchJobPatch(state=BatchJobState.RUNNING))


def submit(allocation: Allocation, command: str, count: int = 1, **fields: object) -> list[int]:
    values = {"app_id": allocation.command(command).id, **fields}
    specs = [JobSpec.model_validate({**values, "workdir": f"w{n}"}) for n in range(count)]
    return [job.id for job in allocation.service.create_jobs(specs)]


def test_serial_launchers_that_mpiexec_starts(pretended: Allocation) -> None:
    """Each has a session, their jobs are not ranks, and SIGTERM has all of them drain."""
    request(pretended, job_mode="serial")
    saves = "trap 'sleep 0.2; echo saved; exit 0' TERM; env; touch ready; while :; do sleep 0.02; done"
    jobs = submit(pretended, saves, 2)
    launcher = pretended.launch()
    ready = [pretended.site.data / f"w{n}/ready" for n in range(2)]
    wait_until(lambda: all(path.exists() for path in ready), 60, f"both jobs at once: {pretended.log}")
    assert len(pretended.service.sessions(site_id=[pretended.site_id]).results) == 2
    launcher.send_signal(signal.SIGTERM)
    assert pretended.end() == 0, pretended.log
    assert pretended.states(jobs) == {JobState.RESTART_READY}
    assert pretended.service.sessions(site_id=[pretended.site_id]).results == []
    for path in ready:
        printed = path.with_name("job.out").read_text()
        assert "saved" in printed
        assert not re.search("^PMI_|^MPI_LOCAL", printed, re.MULTILINE)


def test_nothing_outlives_a_leader(pretended: Allocation) -> None:
    request(pretended, job_mode="serial")
    submit(pretended, "touch ready; sleep 100", 2)
    launcher = pretended.launch()
    ready = [pretended.site.data / f"w{n}/ready" for n in range(2)]
    wait_until(lambda: all(path.exists() for path in ready), 60, f"both jobs at once: {pretended.log}")
    everything = psutil.Process(launcher.pid).children(recursive=True)
    proper_of(launcher).kill()
    assert pretended.end() == 128 + signal.SIGKILL
    assert all(wait_gone(process.pid, 5) for process in everything)


def test_ranks_over_two_hosts(pretended: Allocation) -> None:
    partitions = [{"num_nodes": 2}, {"num_nodes": 1}]
    request(pretended, num_nodes=3, idle_ttl_sec=0, partitions=partitions)
    wide = submit(pretended, "echo $PMI_RANK of $PMI_SIZE, $MPI_LOCALRANKID here", num_nodes=2, ranks_per_node=2)
    pretended.launch()
    assert pretended.end(60) == 0, pretended.log
    assert pretended.states(wide) == {JobState.JOB_FINISHED}
    lines = (pretended.site.data / "w0/job.out").read_text().splitlines()
    assert "partition 1 has no nodes: the allocation has 2 in all" in pretended.log
    assert sorted(lines) == ["0 of 4, 0 here", "1 of 4, 1 here", "2 of 4, 0 here", "3 of 4, 1 here"]
