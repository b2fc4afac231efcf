"""Parsl's tasks as jobs. Workers import `worker` alone: the rest is imported when it is first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from balsam_exec.executors.parsl.executor import BalsamParslExecutor, TaskLost

__all__ = ["BalsamParslExecutor", "TaskLost"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from balsam_exec.executors.parsl import executor

        return getattr(executor, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
