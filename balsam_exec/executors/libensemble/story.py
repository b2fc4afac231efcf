"""What a task is told of its job: the change feed's events as one value, and the future that gathers them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from balsam_exec.executors.future import Canceller, JobFuture
from balsam_exec.model.events import FeedEvent
from balsam_exec.model.states import TERMINAL, JobState

#: States of a job that has run with success. What follows (`postprocess`, staging out) is its site's affair.
SUCCEEDED = frozenset({JobState.RUN_DONE, JobState.POSTPROCESSED, JobState.STAGED_OUT, JobState.JOB_FINISHED})
#: After one of these libEnsemble's task is over.
OVER = SUCCEEDED | TERMINAL
#: The states a task wants to be told of beyond those that every future is.
WATCHED = (JobState.RUN_DONE, JobState.RUN_ERROR, JobState.RUN_TIMEOUT, JobState.RESTART_READY)


@dataclass(frozen=True, slots=True)
class Story:
    """A job so far. Times are Unix times in seconds; `started` and `ended` by the clock of its launcher."""

    created: float
    state: JobState = JobState.CREATED
    started: float | None = None
    ended: float | None = None
    lag: float = 0.0  #: how far our clock is ahead of the launcher's, with the time that news take
    return_code: int | None = None
    error: str = ""

    @property
    def over(self) -> bool:
        return self.state in OVER

    def after(self, state: JobState, timestamp: float, data: Mapping[str, Any], now: float | None = None) -> Story:
        """The story with one more event; `now` is when we heard of it, if we did as it happened."""
        news: dict[str, Any] = {"state": state}
        if state is JobState.RUNNING:
            news.update(started=timestamp, ended=None, lag=0.0 if now is None else now - timestamp)
            news.update(return_code=None, error="")
        elif state in (JobState.RUN_DONE, JobState.RUN_ERROR, JobState.RUN_TIMEOUT):
            news["ended"] = timestamp
            if now is not None:  # news of the start may have taken longer
                news["lag"] = min(self.lag, now - timestamp)
        elif state is JobState.RESTART_READY:
            news.update(started=None, ended=None)
        if "return_code" in data:
            news["return_code"] = data["return_code"]
        if "error" in data:
            news["error"] = str(data["error"])
        return replace(self, **news)

    def runtime(self, now: float) -> float:
        """Seconds since it started, until it ended; 0 while it waits."""
        if self.started is None:
            return 0.0
        return max(0.0, (now - self.lag if self.ended is None else self.ended) - self.started)


class TaskFuture(JobFuture):
    """The future of a task's job. Its value is the job's `Result`, also of one that failed."""

    def __init__(self, engine: Canceller) -> None:
        super().__init__(engine)
        self.story = Story(created=time.time())

    @property
    def over(self) -> bool:
        return self.story.over or self.done()

    def begin(self, story: Story) -> None:
        """What was known before the feed was followed; the feed may have told more already."""
        with self._condition:
            told = self.story
            if told.state is JobState.CREATED:
                self.story = story
            elif told.started is None and told.state is not JobState.RESTART_READY:
                self.story = replace(told, created=story.created, started=story.started)
            else:
                self.story = replace(told, created=story.created)
            self._condition.notify_all()

    def wait_until(self, what: Callable[[], bool], timeout: float | None) -> bool:
        """Wait until this holds or the job is over; woken by the feed. Whether it came to that in time."""
        until = None if timeout is None else time.monotonic() + timeout

        def is_over() -> bool:
            return what() or self.over

        self._engine.lend_thread(is_over, timeout)
        with self._condition:
            return self._condition.wait_for(is_over, None if until is None else max(0.0, until - time.monotonic()))

    def set_result(self, result: Any) -> None:
        super().set_result(result)
        self._engine.rouse()

    def set_exception(self, exception: BaseException | None) -> None:
        super().set_exception(exception)
        self._engine.rouse()

    def _see(self, event: FeedEvent) -> None:
        if event.to_state in JobState.__members__:
            with self._condition:
                when = event.timestamp.timestamp()
                self.story = self.story.after(JobState(event.to_state), when, event.data, time.time())
                self._condition.notify_all()
            self._engine.rouse()

    def _kill(self) -> None:
        with self._condition:
            if not self.done():
                self.story = replace(self.story, state=JobState.USER_KILLED)
        super()._kill()
        self._engine.rouse()
