"""What an executor knows of the libEnsemble worker that uses it.

Workers may be threads that share one executor (`comms="threads"`, a generator on the manager): each sees its own.
"""

from __future__ import annotations

import threading
from typing import Any

from balsam_exec.executors.libensemble.task import BalsamTask


class Worker(threading.local):
    """One thread's view."""

    def __init__(self) -> None:
        self.comm: Any = None  #: to the manager
        self.id: int | None = None
        self.signal: int | None = None  #: the manager's last, from `manager_poll`
        self.num_procs: int | None = None  #: what the generator wants for the present work
        self.num_gpus: int | None = None
        self.unreported: list[BalsamTask] = []  #: not in libE_stats.txt yet


class OfWorker:
    """An attribute of the executor that is its worker's. Deleting it (as generator classes of libEnsemble do, to have
    the executor pickled) sets it to None."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, executor: Any, owner: type | None = None) -> Any:
        return self if executor is None else getattr(executor._worker, self._name)

    def __set__(self, executor: Any, value: Any) -> None:
        setattr(executor._worker, self._name, value)

    def __delete__(self, executor: Any) -> None:
        setattr(executor._worker, self._name, None)
