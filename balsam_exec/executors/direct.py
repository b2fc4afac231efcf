"""An engine for few jobs at a time, each waited for: every thread that a job passes through costs it time."""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections.abc import Callable
from itertools import islice
from typing import Any, Protocol

from balsam_exec.client.lane import Lane, path_of_feed
from balsam_exec.executors.engine import MAX_BATCH, Engine, Item, JobService
from balsam_exec.executors.future import JobFuture
from balsam_exec.model.errors import BalsamError
from balsam_exec.model.events import Feed, FeedEvent
from balsam_exec.model.jobs import JobCreated, Result
from balsam_exec.model.states import JobState

#: Seconds after which a lane that ended is opened again.
REOPEN_SEC = 30.0
#: Seconds after a thread was lent, in which another one may be.
_SOON = 0.05


class LaneService(JobService, Protocol):
    def lane(self) -> Lane | None: ...


class DirectEngine(Engine):
    """Whoever submits sends, over a lane, and whoever waits reads there what comes of it. While nobody does, it is the
    follower.

    One request to create jobs is under way at a time, and what is submitted meanwhile goes with the next. Without a
    lane it is an Engine like any other; what a lane loses with its end, and what is not for it, is sent that way.
    """

    def __init__(self, service: LaneService, *arguments: Any, **options: Any) -> None:
        """As of Engine, whose guard is not asked before jobs are sent."""
        self._opens = service.lane
        self._lane = service.lane()
        self._tried = time.monotonic()
        self._following = False  #: whether the feed is followed on the lane
        self._turn = threading.Lock()  #: to read there
        self._lent = 0  #: the thread that has it, if it was lent
        self._offered = -math.inf  #: when one was to be lent last
        self._taken = False  #: whether it was
        try:
            super().__init__(service, *arguments, **options)
        except BaseException:
            self._leave_lane()
            raise
        self._feed_path = path_of_feed(self._query)

    def adopt(self, job_id: int, state: JobState, result: Result | None = None) -> JobFuture:
        future = super().adopt(job_id, state, result)
        self._begin_to_follow()
        return future

    def close(self) -> None:
        super().close()
        if not self.outstanding:
            self._stop_following()

    # -- sending -------------------------------------------------------------------------------------------

    def _queued(self) -> None:
        if not self._sending and not self._send_by_lane():
            super()._queued()

    def _send_by_lane(self) -> bool:
        """Send what is queued, with the lock; False: it has to go the usual way."""
        lane = self._lane
        batch = list(islice(self._queue, MAX_BATCH))
        if lane is None or any(item.app for item in batch):
            return False
        key = uuid.uuid4().hex
        if not lane.create_jobs([item.spec for item in batch], key, lambda answer: self._created(batch, key, answer)):
            return False
        self._take()
        self._begin_to_follow()
        return True

    def _created(self, batch: list[Item], key: str, answer: list[JobCreated] | BalsamError) -> None:
        if self._broken is not None:
            return
        if isinstance(answer, BalsamError):
            # It may take long.
            threading.Thread(target=self._run, args=(lambda: self._send_again(batch, key),), daemon=True).start()
            return
        for event in self._register(batch, answer):
            self._apply_event(event)
        self._send_on()

    def _send_again(self, batch: list[Item], key: str) -> None:
        """The usual way, which knows what to do about errors."""
        self._send(batch, key)
        self._send_on()

    def _send_on(self) -> None:
        """What was submitted while a request was under way."""
        with self._changed:
            if self._queue:
                self._queued()

    def _register(self, batch: list[Item], created: list[JobCreated]) -> list[FeedEvent]:
        early = super()._register(batch, created)
        self._begin_to_follow()
        return early

    # -- following -----------------------------------------------------------------------------------------

    def _follow_loop(self) -> None:
        try:
            super()._follow_loop()
        finally:
            self._leave_lane()

    def _wait_for_work(self) -> bool:
        if self._lane is None:
            return super()._wait_for_work()
        with self._changed:
            return not (self._closing and not self._outstanding()) and self._broken is None

    def _follow(self) -> None:
        lane = self._lane
        if lane is None:
            super()._follow()
            self._reopen()
        else:
            self._begin_to_follow()
            with self._turn:
                stands_back = time.monotonic() < self._offered + _SOON and (self._taken or not self.outstanding)
                if not stands_back and self._lane is lane:
                    self._read(lane)
            if stands_back:
                time.sleep(_SOON)

    def lend_thread(self, is_over: Callable[[], bool], timeout: float | None) -> None:
        if is_over():
            return  # nothing is read, and so the follower is not to stand back
        until = math.inf if timeout is None else time.monotonic() + timeout
        self._offered, self._taken = time.monotonic(), self._turn.acquire(blocking=False)
        if not self._taken:
            return
        try:
            self._lent = threading.get_ident()
            while (lane := self._lane) is not None and not is_over():
                left = max(0.0, until - time.monotonic())
                if lane.wait(left):
                    self._read(lane)
                if not left:  # who has no time looks at least
                    return
        finally:
            self._lent = 0
            self._turn.release()
            self._offered = time.monotonic()

    def rouse(self) -> None:
        if (lane := self._lane) is not None and self._lent not in (0, threading.get_ident()):
            lane.rouse()

    def _read(self, lane: Lane) -> None:
        try:
            if lane.read():
                return
        except BaseException:  # a signal's, perhaps, in who lent his thread
            lane.close()
            raise
        self._lane, self._following = None, False

    def _reopen(self) -> None:
        if time.monotonic() > self._tried + REOPEN_SEC:
            self._lane = self._opens()
            self._tried = time.monotonic()

    def _begin_to_follow(self) -> None:
        """Follow the feed on the lane, once there is a job."""
        with self._changed:
            if self._lane is not None and not self._following and (self._jobs or self._sending):
                self._following = self._lane.follow(self._feed_path, self._cursor, self._told)

    def _apply(self, event: FeedEvent) -> None:
        future = self._jobs.get(event.subject_id)
        try:
            super()._apply(event)
        except BaseException:  # a signal's: it will be told again
            if future is not None and not future.done():
                self._jobs[event.subject_id] = future
            raise

    def _told(self, answer: Feed | BalsamError | None) -> None:
        if isinstance(answer, Feed):
            self._tell(answer)
        else:
            self._stop_lane()  # the usual way knows what to do about it

    def _stop_following(self) -> None:
        super()._stop_following()
        self._stop_lane()

    def _leave_lane(self) -> None:
        """End it and read to its end."""
        self._stop_lane()
        with self._turn:
            while self._lane is not None:
                self._read(self._lane)

    def _stop_lane(self) -> None:
        if (lane := self._lane) is not None:
            lane.close()
