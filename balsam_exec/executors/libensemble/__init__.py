"""libEnsemble on Balsam: `BalsamExecutor` and its tasks (seed 003). Importing this imports libensemble."""

from __future__ import annotations

from balsam_exec.executors.libensemble.executor import BalsamExecutor
from balsam_exec.executors.libensemble.task import BalsamTask

__all__ = ["BalsamExecutor", "BalsamTask"]
