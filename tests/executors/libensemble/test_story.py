"""What a task knows of its job from the events of the feed."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

import pytest

from balsam_exec.executors.libensemble.story import Story, TaskFuture
from balsam_exec.model.events import FeedEvent, Kind
from balsam_exec.model.states import JobState

S = JobState


def test_a_run_by_a_clock_that_is_slow() -> None:
    waiting = Story(created=100.0).after(S.PREPROCESSED, 60.0, {}, 100.0)
    assert (waiting.over, waiting.runtime(200.0)) == (False, 0.0)
    running = waiting.after(S.RUNNING, 70.0, {}, 110.5)
    assert running.runtime(112.5) == 2.0
    done = running.after(S.RUN_DONE, 75.0, {"return_code": 0}, 115.6)
    assert done.over
    assert (done.runtime(999.0), done.return_code, done.lag) == (5.0, 0, 40.5)
    assert running.after(S.RUN_DONE, 75.0, {}, 115.25).lag == 40.25


def test_a_failure_that_is_retried() -> None:
    failed = Story(created=0.0).after(S.RUNNING, 1.0, {}).after(S.RUN_ERROR, 3.0, {"return_code": 7, "error": "oh"})
    assert (failed.over, failed.return_code, failed.error, failed.runtime(9.0)) == (False, 7, "oh", 2.0)
    again = failed.after(S.RESTART_READY, 4.0, {})
    assert (again.over, again.runtime(9.0)) == (False, 0.0)
    second = again.after(S.RUNNING, 5.0, {})
    assert (second.return_code, second.error, second.runtime(7.0)) == (None, "", 2.0)
    assert second.after(S.RUN_ERROR, 8.0, {"return_code": 1}).after(S.FAILED, 8.0, {}).over


class NoEngine:
    def cancel(self, futures: object) -> list[TaskFuture]:
        raise AssertionError

    kill = cancel

    def lend_thread(self, *_: object) -> None:
        """Somebody else tells the future."""

    rouse = lend_thread


@pytest.fixture
def future() -> TaskFuture:
    return TaskFuture(NoEngine())


def event(state: str, seconds: float = 0.0, **data: object) -> FeedEvent:
    return FeedEvent(
        id=1, kind=Kind.JOB, subject_id=1, from_state="", to_state=state, data=data,
        timestamp=datetime.fromtimestamp(seconds, UTC),
    )  # fmt: skip


def test_whoever_waits_is_woken_by_events(future: TaskFuture) -> None:
    woken = []
    thread = threading.Thread(target=lambda: woken.append(future.wait_until(lambda: False, 30)))
    thread.start()
    future._see(event("RUNNING", 1.0))
    assert not future.wait_until(lambda: False, 0)
    assert future.wait_until(lambda: future.story.started == 1.0, 0)
    future._see(event("RUN_DONE", 2.0))
    thread.join(30)
    assert woken == [True]


def test_a_kill_is_the_end(future: TaskFuture) -> None:
    future._see(event("RUNNING", 1.0))
    future._start()
    future._kill()
    assert (future.story.state, future.over) == (S.USER_KILLED, True)


def test_a_deleted_job_is_over_without_a_state(future: TaskFuture) -> None:
    future._see(event("deleted"))
    assert future.story.state is S.CREATED


def test_what_was_known_before_joins_what_the_feed_has_told(future: TaskFuture) -> None:
    known = Story(created=10.0, state=S.RUNNING, started=11.0)
    future.begin(known)
    assert future.story == known

    faster = TaskFuture(NoEngine())
    faster._see(event("RUN_DONE", 12.0, return_code=0))
    faster.begin(known)
    assert (faster.story.created, faster.story.started, faster.story.state) == (10.0, 11.0, S.RUN_DONE)

    restarted = TaskFuture(NoEngine())
    restarted._see(event("RESTART_READY", 12.0))
    restarted.begin(known)
    assert (restarted.story.created, restarted.story.started) == (10.0, None)
