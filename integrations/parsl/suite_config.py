"""For Parsl's own test suite: `pytest SITE-PACKAGES/parsl/tests --config integrations/parsl/suite_config.py`."""

from __future__ import annotations

from parsl.config import Config

from balsam_exec.executors.parsl import BalsamParslExecutor


def fresh_config() -> Config:
    return Config(executors=[BalsamParslExecutor(max_workers_per_node=4)], usage_tracking=0)
