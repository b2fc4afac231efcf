"""Schedulers to be tested, each with a directory, and what one needs to wait for them."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from pathlib import Path

from balsam_exec.platform.processes import Process
from balsam_exec.platform.schedulers import (
    FluxScheduler,
    LocalScheduler,
    LsfScheduler,
    PbsScheduler,
    Scheduler,
    SlurmScheduler,
    Status,
    SubmitSpec,
)
from balsam_exec.platform.schedulers.base import SchedulerState
from tests.support.processes import wait_until

#: Seconds from SIGTERM to SIGKILL, and between two looks at a queue.
GRACE, POLL = 0.3, 0.05


class Bench(ABC):
    """A scheduler with the directory of a site."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.qsubmit = directory / "qsubmit"
        self.qsubmit.mkdir(exist_ok=True)
        self.log = directory / "1.log"  #: of the key "1"
        self.changed = threading.Event()
        self.scheduler: Scheduler = self.make()

    @abstractmethod
    def make(self) -> Scheduler:
        """The scheduler, as an agent makes it when it starts."""

    def close(self) -> None:
        self.scheduler.close()

    def restart(self) -> None:
        self.scheduler.close()
        self.scheduler = self.make()

    def spec(
        self, key: str = "1", *, num_nodes: int = 1, wall_time_min: int = 1, queue: str = "local", **params: str
    ) -> SubmitSpec:
        return SubmitSpec(
            key,
            num_nodes=num_nodes,
            wall_time_min=wall_time_min,
            queue=queue,
            project="local",
            log=self.directory / f"{key}.log",
            optional_params=params,
        )

    def script(self, spec: SubmitSpec, text: str) -> Path:
        script = self.qsubmit / f"{spec.key}.sh"
        if script.exists():  # it may be running
            return script
        directives = "\n".join(self.scheduler.directives(spec))
        script.write_text(f"#!/bin/bash\n{directives}\n{text}\n")
        script.chmod(0o755)
        return script

    def submit(self, text: str, spec: SubmitSpec | None = None) -> str:
        spec = spec or self.spec()
        return self.scheduler.submit(self.script(spec, text), spec)

    def status(self, scheduler_id: str) -> Status:
        return self.scheduler.statuses([scheduler_id])[scheduler_id]

    def wait_state(self, scheduler_id: str, state: SchedulerState, timeout: float = 30) -> Status:
        """Woken by the scheduler alone, if it does that, or looking as often as it wants."""
        deadline = time.monotonic() + timeout
        while (status := self.status(scheduler_id)).state is not state:
            left = deadline - time.monotonic()
            assert left > 0, f"{scheduler_id} is not {state}: {status}\n{self.logged()}"
            told = self.changed.wait(min(left, self.scheduler.poll_sec or left))
            assert told or self.scheduler.poll_sec, f"not told of a change of {scheduler_id}: {status}"
            self.changed.clear()
        return status

    def wait_finished(self, scheduler_id: str) -> Status:
        return self.wait_state(scheduler_id, SchedulerState.FINISHED)

    def logged(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def wait_logged(self, line: str) -> None:
        wait_until(lambda: line in self.logged(), 10, f"{line!r} in the log")


class LocalBench(Bench):
    def make(self) -> Scheduler:
        return LocalScheduler(self.qsubmit, on_change=self.changed.set, grace=GRACE)

    def close(self) -> None:
        for marker in self.qsubmit.glob("*.id"):
            leader = leader_of(marker.read_text().strip())
            leader.kill_followers()
            leader.end(5)
        super().close()


class SlurmBench(Bench):
    """The environment must name the cluster."""

    def make(self) -> SlurmScheduler:
        return SlurmScheduler(self.qsubmit, poll_sec=POLL, grace=GRACE)


class PbsBench(Bench):
    """The environment must have the stand-ins; likewise for the others."""

    def make(self) -> PbsScheduler:
        return PbsScheduler(self.qsubmit, poll_sec=POLL)


class LsfBench(Bench):
    def make(self) -> LsfScheduler:
        return LsfScheduler(self.qsubmit, poll_sec=POLL)


class FluxBench(Bench):
    def make(self) -> FluxScheduler:
        return FluxScheduler(self.qsubmit, poll_sec=POLL)


BENCHES = {"local": LocalBench, "slurm": SlurmBench, "pbs": PbsBench, "lsf": LsfBench, "flux": FluxBench}


def leader_of(scheduler_id: str) -> Process:
    """The process that leads an allocation of the local scheduler."""
    pid, start = scheduler_id.partition("@")[0].split(".")
    return Process(int(pid), int(start))
