"""Calls on several ranks, from a pool to a real allocation and back."""

from __future__ import annotations

import pytest

from balsam_exec.embedded import Deployment
from balsam_exec.executors import BalsamPoolExecutor

pytest.importorskip("mpi4py")


def ranks(factor: int) -> list[int] | None:
    from mpi4py import MPI

    if factor < 0 and MPI.COMM_WORLD.rank == 1:
        raise ValueError(f"no negative factors, {factor}")
    everything: list[int] | None = MPI.COMM_WORLD.gather(factor * MPI.COMM_WORLD.rank)
    return everything


def test_a_pool_runs_calls_on_several_ranks(deployment: Deployment) -> None:
    with BalsamPoolExecutor(max_workers=2) as pool:
        mpi = pool.with_resources(ranks_per_node=3)
        good, bad, serial = mpi.submit(ranks, 2), mpi.submit(ranks, -1), pool.submit(ranks, 2)
        assert good.result(timeout=60) == [0, 2, 4]
        assert serial.result(timeout=60) == [0]
        with pytest.raises(ValueError, match="no negative factors, -1") as caught:
            bad.result(timeout=60)
    assert "on rank 1 of 3" in str(caught.value.__cause__)
