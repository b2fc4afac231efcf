"""An Executor that knows which worker of libEnsemble uses it.

Workers may be threads that share one executor (`comms="threads"`, a generator on the manager): each sees its own.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from libensemble.executors.executor import Executor

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


class OfWorkers(Executor):  # type: ignore[misc]
    """What libEnsemble's machinery does with an executor; none of it is for users."""

    workerID = OfWorker("id")
    manager_signal = OfWorker("signal")
    gen_nprocs = OfWorker("num_procs")
    gen_ngpus = OfWorker("num_gpus")

    def __init__(self) -> None:
        self._worker = Worker()
        self.resources: Any = None
        super().__init__()

    def __getstate__(self) -> dict[str, Any]:
        # To a spawned worker. What the executor is to this process stays here.
        return {**self.__dict__, "_worker": None, "list_of_tasks": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._worker = Worker()

    @property
    def comm(self) -> Any:
        return self._worker.comm

    @comm.setter
    def comm(self, value: Any) -> None:
        if value is None and self._worker.comm is not None:
            self._leave()
        self._worker.comm = value

    @comm.deleter
    def comm(self) -> None:
        self._worker.comm = None

    def _leave(self) -> None:
        """The worker's work is over, and from now on a signal may end its process."""

    def serial_setup(self) -> None:
        """Nothing: apps are registered when `register_app` is called."""

    def add_app(self, *args: Any) -> None:
        """Nothing; for scripts of libEnsemble up to 1.5."""

    def set_resources(self, resources: Any) -> None:
        """libEnsemble's resources. They count for `auto_assign_gpus` alone: the site decides where jobs go."""
        self.resources = resources

    def set_gen_procs_gpus(self, libE_info: Mapping[str, Any]) -> None:
        """What the generator wants for the present work: the `num_procs` and `num_gpus` of tasks that give none."""
        self.gen_nprocs = libE_info.get("num_procs")
        self.gen_ngpus = libE_info.get("num_gpus")

    def set_worker_info(self, comm: Any = None, workerid: int | None = None) -> None:
        self.workerID, self.comm = workerid, comm

    def manager_poll(self) -> Any:
        """The manager's kill signal, if there is one; also in `manager_signal`."""
        self.manager_signal = None
        return None if self.comm is None else super().manager_poll()

    def new_tasks_timing(self, datetime: bool = False) -> str:
        """The timing of the tasks that this worker submitted since the last call, for libE_stats.txt."""
        tasks, self._worker.unreported = self._worker.unreported, []
        return "".join(f" Task {i}: {t.timer if datetime else t.timer.summary()}" for i, t in enumerate(tasks))

    def _note(self, task: BalsamTask) -> None:
        self.list_of_tasks.append(task)
        self._worker.unreported.append(task)

    def _worker_gpus(self) -> int | None:
        """The GPUs of this worker by libEnsemble's count."""
        mine = getattr(self.resources, "worker_resources", None)
        if mine is None or not mine.doihave_gpus():
            return None
        return int(mine.slot_count * mine.gpus_per_rset_per_node * mine.local_node_count)
