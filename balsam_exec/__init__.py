"""Run large campaigns on supercomputers from the tools you already use.

The public names, imported when they are first used so that `import balsam_exec` stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from balsam_exec._version import __version__

if TYPE_CHECKING:
    from balsam_exec.api import ApplicationDefinition, BatchJob, EventLog, Job, Site, current_job
    from balsam_exec.executors.pool import BalsamPoolExecutor

_HOMES = {
    "ApplicationDefinition": "balsam_exec.api",
    "BatchJob": "balsam_exec.api",
    "EventLog": "balsam_exec.api",
    "Job": "balsam_exec.api",
    "Site": "balsam_exec.api",
    "current_job": "balsam_exec.api",
    "BalsamPoolExecutor": "balsam_exec.executors.pool",
}

__all__ = [
    "ApplicationDefinition",
    "BalsamPoolExecutor",
    "BatchJob",
    "EventLog",
    "Job",
    "Site",
    "__version__",
    "current_job",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
