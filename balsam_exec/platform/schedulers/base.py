"""What the site agent asks of a batch scheduler."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from balsam_exec.model.batch_jobs import TOLD, AllocationRequest
from balsam_exec.model.errors import BalsamError


class SubmitRefused(BalsamError):
    """The scheduler does not want the job (no such queue, over a limit). The same request will be refused again."""

    code = "submit_refused"


class ModifyRefused(BalsamError):
    """The scheduler leaves a job that waits as it is."""

    code = "modify_refused"


class SchedulerUnavailable(BalsamError):
    """The scheduler could not be asked. It says nothing about any job; ask again later."""

    code = "scheduler_unavailable"
    transient = True


class SchedulerState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    UNKNOWN = "unknown"  #: the scheduler says nothing of it now; it may be in any state


@dataclass(frozen=True)
class Status:
    """What a scheduler says of one job."""

    state: SchedulerState
    exit_code: int | None = None  #: of the script, once FINISHED; None where it was not recorded
    info: str = ""  #: why, in words for a person
    time_left: float | None = None  #: seconds until a RUNNING one is taken away; None: not known, or no limit


@dataclass(frozen=True)
class SubmitSpec:
    """What to ask of the scheduler for one script."""

    key: str  #: the site's name for this submission; a key is submitted at most once
    num_nodes: int
    wall_time_min: int
    queue: str
    project: str
    log: Path  #: stdout and stderr of the script are appended here
    optional_params: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, request: AllocationRequest, key: str, log: Path) -> SubmitSpec:
        return cls(key=key, log=log, **{name: getattr(request, name) for name in TOLD})

    @property
    def request(self) -> AllocationRequest:
        return AllocationRequest.model_validate({name: getattr(self, name) for name in TOLD})


@dataclass(frozen=True)
class Window:
    """Idle nodes that nobody is expected to need for a while: what fits in starts at once."""

    queue: str
    num_nodes: int
    wall_time_min: int | None  #: for so long; None: no limit is known


class Scheduler(ABC):
    """A batch scheduler. Methods may block for as long as its commands take; they are safe to call from any thread.

    All of them may raise SchedulerUnavailable, after which nothing is known to have changed.
    """

    #: Seconds between two looks at the statuses; None: `on_change` (given when it is made) is called at each change.
    poll_sec: float | None = None

    def directives(self, spec: SubmitSpec) -> list[str]:
        """The lines for the top of a script that ask the scheduler for what `spec` says. Raises SubmitRefused."""
        return []

    @abstractmethod
    def submit(self, script: Path, spec: SubmitSpec) -> str:
        """Have the executable `script` run once, and return its id.

        At most one run for each `spec.key`, however often it is called and whoever crashes when: a repeated call
        returns the id of the first run. Raises SubmitRefused.
        """

    @abstractmethod
    def find(self, key: str) -> str | None:
        """The id under which `key` was submitted, None if it never was. Finds what a crash left unrecorded."""

    @abstractmethod
    def statuses(self, ids: Iterable[str]) -> dict[str, Status]:
        """The status of each of the `ids`. One the scheduler cannot tell of is UNKNOWN, never FINISHED."""

    def asked(self, key: str) -> list[AllocationRequest]:
        """What `key` asks for: the last of these, or, where somebody has died over changes, perhaps one of the others.
        Empty where that was not recorded."""
        return []

    def modify(self, scheduler_id: str, before: SubmitSpec, after: SubmitSpec) -> None:
        """Have a job that waits ask for something else: all of it, or nothing. It asks for `before` now, or for one
        of what `asked` says. Repeating it does no harm.

        Raises ModifyRefused, in the words of the scheduler; also where the job has started.
        """
        raise ModifyRefused("with this scheduler allocations start at once")

    @abstractmethod
    def cancel(self, scheduler_id: str) -> None:
        """Ask for the end of a job: SIGTERM first, and after a grace period SIGKILL for all that is left of it.

        Returns at once; `statuses` says when it is over. Harmless when repeated and for a job that has ended.
        """

    def windows(self) -> list[Window]:
        """Where an allocation would start at once, as far as the scheduler tells; none: nothing is known."""
        return []

    def close(self) -> None:
        """Release what the object holds. Jobs go on."""
        return
