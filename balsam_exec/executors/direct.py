"""An engine for few jobs at a time, each waited for: every thread that a job passes through costs it time."""

from __future__ import annotations

import time
import uuid
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


class LaneService(JobService, Protocol):
    def lane(self) -> Lane | None: ...


class DirectEngine(Engine):
    """Whoever submits sends, over a lane, and the follower reads there what comes of it.

    One request to create jobs is under way at a time, and what is submitted meanwhile goes with the next. Without a
    lane it is an Engine like any other; what a lane loses with its end, and what is not for it, is sent that way.
    """

    def __init__(self, service: LaneService, *arguments: Any, **options: Any) -> None:
        """As of Engine, whose guard is not asked before jobs are sent."""
        self._opens = service.lane
        self._lane = service.lane()
        self._tried = time.monotonic()
        self._following = False  #: whether the feed is followed on the lane
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
            self._send(batch, key)  # it knows what to do about errors
        else:
            for event in self._register(batch, answer):
                self._apply_event(event)
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
            self._read(lane)

    def _read(self, lane: Lane) -> None:
        if not lane.read():
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
        while self._lane is not None:
            self._read(self._lane)

    def _stop_lane(self) -> None:
        if (lane := self._lane) is not None:
            lane.close()
