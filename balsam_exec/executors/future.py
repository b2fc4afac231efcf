"""The future of one job."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from concurrent.futures._base import CANCELLED, PENDING
from typing import Any, Protocol

from balsam_exec.model.errors import JobFailed
from balsam_exec.model.events import FeedEvent


class Canceller(Protocol):
    """What a future asks of its engine."""

    def cancel(self, futures: Iterable[JobFuture]) -> Sequence[JobFuture]: ...
    def kill(self, futures: Iterable[JobFuture]) -> Sequence[JobFuture]: ...

    def lend_thread(self, is_over: Callable[[], bool], timeout: float | None) -> None:
        """Of who waits and has nothing else to do, until it is over or something else may have come of it."""

    def rouse(self) -> None:
        """Who has lent a thread is to look whether it is over."""


class JobFuture(Future[Any]):
    """The future of one job. `job_id` is its id at the service, once it is known."""

    def __init__(self, engine: Canceller) -> None:
        super().__init__()
        self._engine = engine
        self.job_id: int | None = None

    def cancel(self) -> bool:
        """Cancel the job unless a launcher already holds it: a cancelled job never ran. Asks the service.

        Returns whether it is cancelled.
        """
        if self.done():
            return self.cancelled()
        return bool(self._engine.cancel([self]))

    def _see(self, event: FeedEvent) -> None:
        """An event of the job, before it counts; for kinds of futures that know more than the standard ones."""

    # Several threads of the engine may tell a future the same thing; the second time changes nothing.

    def _start(self) -> None:
        with self._condition:
            if self._state == PENDING:
                self.set_running_or_notify_cancel()

    def _kill(self) -> None:
        if super().cancel():
            with self._condition:
                if self._state == CANCELLED:
                    self.set_running_or_notify_cancel()
        elif not self.done():
            self.set_exception(JobFailed(f"job {self.job_id} was killed while it ran"))

    def __repr__(self) -> str:
        return f"<JobFuture job={self.job_id} {super().__repr__()[1:]}"
