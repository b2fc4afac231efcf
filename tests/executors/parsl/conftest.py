"""Parsl on a deployment: each test loads what it needs, in a directory of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import parsl
import pytest
from parsl.config import Config
from parsl.dataflow.dflow import DataFlowKernel
from parsl.executors.base import ParslExecutor

from balsam_exec.embedded import Deployment
from balsam_exec.executors import BalsamParslExecutor
from balsam_exec.executors.parsl.executor import TAG
from balsam_exec.model.jobs import JobRecord

Load = Callable[..., DataFlowKernel]


@pytest.fixture
def load(deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """`load(executor, ..., **options of Config)`; whatever is loaded is cleaned up."""
    monkeypatch.chdir(tmp_path)

    def load(*executors: ParslExecutor, **options: Any) -> DataFlowKernel:
        base = {"run_dir": str(tmp_path / "runinfo"), "usage_tracking": 0, "strategy_period": 0.1}
        options = {"initialize_logging": False, **base, **options}
        return parsl.load(Config(executors=list(executors), **options))

    yield load
    if parsl.DataFlowKernelLoader._dfk is not None:
        parsl.dfk().cleanup()


def jobs(deployment: Deployment, executor: BalsamParslExecutor) -> list[JobRecord]:
    """Those of the executor."""
    return deployment.service().jobs(tags={TAG: executor.name}, limit=1000).results
