"""Executors: the front doors through which other people's tools submit jobs.

The names are imported when they are first used: each needs its own tool, and only that.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from balsam_exec.executors.libensemble import BalsamExecutor, BalsamTask
    from balsam_exec.executors.parsl import BalsamParslExecutor
    from balsam_exec.executors.pool import BalsamPoolExecutor

#: name -> (its module, the tool it is for)
_HOMES = {
    "BalsamExecutor": ("balsam_exec.executors.libensemble", "libensemble"),
    "BalsamParslExecutor": ("balsam_exec.executors.parsl", "parsl"),
    "BalsamPoolExecutor": ("balsam_exec.executors.pool", ""),
    "BalsamTask": ("balsam_exec.executors.libensemble", "libensemble"),
}

__all__ = ["BalsamExecutor", "BalsamParslExecutor", "BalsamPoolExecutor", "BalsamTask"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home, tool = _HOMES[name]
    try:
        return getattr(import_module(home), name)
    except ModuleNotFoundError as error:
        if tool and error.name == tool:
            raise ImportError(f'{name} needs {tool}: pip install "balsam-exec[{tool}]"') from error
        raise


def __dir__() -> list[str]:
    return __all__
