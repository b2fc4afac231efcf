"""The Slurm of the tests: there when it says so, and gone with what it ran, also when pytest is killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import MARKER, marked_processes, wait_until
from tests.support.slurm import SlurmCluster, missing

CLUSTER = """
import sys
from tests.support.slurm import SlurmCluster
cluster = SlurmCluster(nodes=1)
cluster.run("sbatch", "--output=/dev/null", "--wrap=exec setsid sleep 300")
print(cluster.directory, flush=True)
sys.stdin.read()
"""


def test_four_nodes_with_cores_and_gpus(slurm: SlurmCluster) -> None:
    shown = slurm.run("sinfo", "-h", "-N", "-p", "debug", "-o", "%N %t %c %G").splitlines()
    assert shown == [f"node0{number} idle 8 gpu:4" for number in range(1, 5)]


def test_cleared_it_is_idle_again(slurm: SlurmCluster) -> None:
    slurm.run("sbatch", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=exec sleep 300")
    wait_until(lambda: slurm.node_states() == ["alloc"] * 4, 20, "the nodes to be used")
    slurm.clear()
    assert slurm.node_states() == ["idle"] * 4


@pytest.mark.skipif(bool(missing()), reason=missing())
def test_nothing_is_left_when_who_started_it_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even a job that has left the session and the process tree that Slurm knows."""
    monkeypatch.setenv(MARKER, "of-the-killed-slurm")
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root
    ) as starter:
        assert starter.stdout
        directory = starter.stdout.readline().strip()
        commands = [process.command for process in marked_processes("of-the-killed-slurm")]
        assert any("slurmd" in command for command in commands)
        wait_until(
            lambda: any("sleep 300" in process.command for process in marked_processes("of-the-killed-slurm")),
            20,
            "the job to run",
        )
        starter.kill()
    wait_until(lambda: not marked_processes("of-the-killed-slurm"), 20, "everything to be gone")
    wait_until(lambda: not Path(directory).exists(), 20, "the directory to be removed")
