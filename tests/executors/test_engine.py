"""The engine against an in-memory service: batches, early events, cancels, a service that goes away."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError

import pytest

from balsam_exec.apps.payload import load_result
from balsam_exec.executors import engine as engine_module
from balsam_exec.executors.allocation import NoAllocation
from balsam_exec.executors.engine import Engine
from balsam_exec.executors.future import JobFuture
from balsam_exec.model.apps import AppSpec
from balsam_exec.model.errors import InvalidRequest, JobFailed, ServiceUnavailable
from balsam_exec.model.events import FeedEvent
from balsam_exec.model.jobs import JobSpec, Result
from balsam_exec.model.states import JobState
from tests.executors.fake import BAD_APP, BAD_WORKDIR, FakeService

GOOD = JobSpec(app_id=1, workdir="good")
BAD = JobSpec(app_id=1, workdir=BAD_WORKDIR)


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def engine(service: FakeService) -> Iterator[Engine]:
    ended = threading.Event()
    engine = Engine(service, {"pool": "p"}, load_result, NoAllocation(), ended.set)
    yield engine
    engine.fail_all(ServiceUnavailable("the test is over"))
    engine.close()
    engine.join()
    assert ended.is_set()


def test_a_future_runs_and_has_the_value_of_its_job(service: FakeService, engine: Engine) -> None:
    future = engine.submit(GOOD)
    service.wait_jobs(1)
    started = threading.Event()
    future.add_done_callback(lambda _: started.set())
    service.finish(1, "value")
    assert future.result(timeout=10) == "value"
    assert future.job_id == 1
    assert started.wait(10)
    assert engine.outstanding == 0


def app(name: str) -> AppSpec:
    return AppSpec(site_id=1, name=name, command_template="true")


def test_an_app_is_registered_once_before_its_jobs(service: FakeService, engine: Engine) -> None:
    futures = [engine.submit(GOOD, app("a")), engine.submit(GOOD, app("b")), engine.submit(GOOD)]
    service.wait_jobs(3)
    futures.append(engine.submit(GOOD, app("a")))
    service.wait_jobs(4)
    assert service.apps == ["a", "b"]
    assert [service.specs[job_id].app_id for job_id in range(1, 5)] == [100, 101, 1, 100]
    for job_id in range(1, 5):
        service.finish(job_id, job_id)
    assert [future.result(timeout=10) for future in futures] == [1, 2, 3, 4]


def test_an_app_that_is_refused_fails_its_jobs_alone(service: FakeService, engine: Engine) -> None:
    service.answer.clear()
    first = engine.submit(GOOD)
    service.wait_jobs(1)
    bad, good = engine.submit(GOOD, app(BAD_APP)), engine.submit(GOOD, app("good"))
    service.answer.set()
    with pytest.raises(InvalidRequest, match="a bad app"):
        bad.result(timeout=10)
    service.wait_jobs(2)
    for job_id in (1, 2):
        service.finish(job_id, job_id)
    assert [first.result(timeout=10), good.result(timeout=10)] == [1, 2]


def test_killing_ends_what_waits_at_once_and_what_runs_when_it_is_dead(service: FakeService, engine: Engine) -> None:
    running, waiting, done = (engine.submit(GOOD) for _ in range(3))
    service.wait_jobs(3)
    service.finish(3, "done")
    service.move(1, JobState.RUNNING)
    assert done.result(timeout=10) == "done"
    service.answer.clear()
    sending = engine.submit(GOOD)
    service.wait_jobs(4)
    queued = engine.submit(GOOD)
    threading.Timer(0.1, service.answer.set).start()
    assert set(engine.kill([running, waiting, done, sending, queued])) == {waiting, sending, queued}
    assert all(future.cancelled() for future in (waiting, sending, queued))
    assert not running.done()
    service.move(1, JobState.USER_KILLED)
    with pytest.raises(JobFailed, match="killed while it ran"):
        running.result(timeout=10)


def test_a_future_of_another_kind_sees_the_events_of_its_job(service: FakeService) -> None:
    class Witness(JobFuture):
        seen: tuple[str, ...] = ()

        def _see(self, event: FeedEvent) -> None:
            self.seen += (event.to_state,)

    watched = [JobState.RUN_DONE.value]
    engine = Engine(service, {}, load_result, NoAllocation(), lambda: None, future=Witness, watched=watched)
    try:
        future = engine.submit(GOOD)
        service.wait_jobs(1)
        service.move(1, JobState.RUNNING)
        service.move(1, JobState.RUN_DONE)
        assert not future.done()
        service.move(1, JobState.JOB_FINISHED, Result(ok=True))
        future.result(timeout=10)
        assert isinstance(future, Witness)
        assert future.seen == ("RUNNING", "RUN_DONE", "JOB_FINISHED")
        assert service.query is not None
        assert set(watched) < set(service.query.to_state)
    finally:
        engine.fail_all(ServiceUnavailable("the test is over"))
        engine.close()
        engine.join()


def test_what_gathers_during_a_request_goes_with_the_next_one(service: FakeService, engine: Engine) -> None:
    service.answer.clear()
    futures = [engine.submit(GOOD)]
    service.wait_jobs(1)
    futures += [engine.submit(GOOD) for _ in range(50)]
    service.answer.set()
    service.wait_jobs(51)
    assert service.batches == [1, 50]
    for job_id in range(1, 52):
        service.finish(job_id, job_id)
    assert [f.result(timeout=10) for f in futures] == list(range(1, 52))


def test_an_event_that_is_faster_than_the_answer_is_not_lost(service: FakeService, engine: Engine) -> None:
    engine.submit(GOOD)
    service.wait_jobs(1)
    with service.changed:  # the feed is followed because of this first job
        assert service.changed.wait_for(lambda: service.asked == 0 and service.following, timeout=10)
    service.answer.clear()
    future = engine.submit(GOOD)
    service.wait_jobs(2)
    service.finish(2, "early")
    with service.changed:  # the follower has taken the events
        assert service.changed.wait_for(lambda: service.asked == 2, timeout=10)
    assert not future.done()
    service.answer.set()
    assert future.result(timeout=10) == "early"


def test_a_bad_job_fails_alone(service: FakeService, engine: Engine) -> None:
    service.answer.clear()
    engine.submit(GOOD)
    service.wait_jobs(1)
    futures = [engine.submit(BAD if i == 3 else GOOD) for i in range(8)]
    service.answer.set()
    with pytest.raises(InvalidRequest, match="a bad job"):
        futures[3].result(timeout=10)
    service.wait_jobs(8)
    for job_id in range(2, 9):
        service.finish(job_id, job_id)
    assert [f.result(timeout=10) for i, f in enumerate(futures) if i != 3] == list(range(2, 9))


def test_cancel_only_what_no_launcher_holds(service: FakeService, engine: Engine) -> None:
    waiting, held = engine.submit(GOOD), engine.submit(GOOD)
    service.wait_jobs(2)
    by_id = {1: waiting, 2: held} if waiting.job_id == 1 else {2: waiting, 1: held}
    held_id = next(i for i, f in by_id.items() if f is held)
    service.move(held_id, JobState.RUNNING)
    assert waiting.cancel()
    assert waiting.cancelled()
    assert not held.cancel()
    service.finish(held_id, "done")
    assert held.result(timeout=10) == "done"
    with pytest.raises(CancelledError):
        waiting.result(timeout=10)


def test_cancel_before_it_was_sent_asks_nobody(service: FakeService, engine: Engine) -> None:
    service.answer.clear()
    engine.submit(GOOD)
    service.wait_jobs(1)
    queued = engine.submit(GOOD)
    assert queued.cancel()
    service.answer.set()
    assert service.batches == [1]


def test_killed_by_somebody_else(service: FakeService, engine: Engine) -> None:
    waiting, running = engine.submit(GOOD), engine.submit(GOOD)
    service.wait_jobs(2)
    service.move(2, JobState.RUNNING)
    for job_id in (1, 2):
        service.move(job_id, JobState.USER_KILLED)
    with pytest.raises(CancelledError):
        waiting.result(timeout=10)
    with pytest.raises(JobFailed, match="killed"):
        running.result(timeout=10)


def test_failures_have_their_text(service: FakeService, engine: Engine) -> None:
    future = engine.submit(GOOD)
    service.wait_jobs(1)
    service.move(1, JobState.FAILED, Result(ok=False, error="exit code 3", reason="exit", return_code=3))
    with pytest.raises(JobFailed, match="exit code 3"):
        future.result(timeout=10)


def test_a_result_that_cannot_be_loaded_is_an_exception_not_a_hang(service: FakeService, engine: Engine) -> None:
    future = engine.submit(GOOD)
    service.wait_jobs(1)
    service.move(1, JobState.JOB_FINISHED, Result(ok=True, value=b"rubbish"))
    assert future.exception(timeout=10) is not None


def test_it_rides_out_a_service_that_goes_away(
    service: FakeService, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "RETRY_SEC", 0.01)
    service.away = 5
    future = engine.submit(GOOD)
    service.wait_jobs(1)
    service.away = 3
    service.finish(1, 7)
    assert future.result(timeout=10) == 7


def test_it_gives_up_after_its_patience(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "RETRY_SEC", 0.01)
    ended = threading.Event()
    engine = Engine(service, {}, load_result, NoAllocation(), ended.set, patience=0.05)
    service.away = 10**9
    future = engine.submit(GOOD)
    with pytest.raises(ServiceUnavailable):
        future.result(timeout=10)
    engine.close()
    engine.join()
    assert ended.is_set()


def test_adopted_futures(service: FakeService, engine: Engine) -> None:
    service.create_jobs([GOOD, GOOD], key="earlier")
    service.move(1, JobState.RUNNING)  # after the engine was made: the feed tells
    done = engine.adopt(3, JobState.JOB_FINISHED, Result(ok=True))
    assert done.result(timeout=10) is None
    assert not service.following
    first, later = engine.adopt(1, JobState.PREPROCESSED), engine.adopt(2, JobState.RUNNING)
    assert later.running()
    service.finish(1, "first")
    assert first.result(timeout=10) == "first"
    service.finish(2, "later")
    assert later.result(timeout=10) == "later"


def test_callbacks_may_submit_and_cancel(service: FakeService, engine: Engine) -> None:
    first = engine.submit(GOOD)
    service.wait_jobs(1)
    seen = threading.Event()

    def callback(_: object) -> None:
        engine.submit(GOOD).cancel()
        seen.set()

    first.add_done_callback(callback)
    service.finish(1, 1)
    assert seen.wait(10)


def test_submit_after_close_and_after_the_end(service: FakeService, engine: Engine) -> None:
    engine.close()
    with pytest.raises(RuntimeError, match="after shutdown"):
        engine.submit(GOOD)
    engine.fail_all(ServiceUnavailable("gone"))
    with pytest.raises(ServiceUnavailable, match="gone"):
        engine.submit(GOOD)


def test_giving_up_is_no_news_of_the_service(service: FakeService, caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine(service, {}, load_result, NoAllocation(), lambda: None)
    future = engine.submit(GOOD)
    with service.changed:
        assert service.changed.wait_for(lambda: service.following, timeout=30)
    engine.close()
    engine.fail_all(RuntimeError("enough"))  # closes the connection on which the follower waits
    engine.join()
    assert isinstance(future.exception(timeout=30), RuntimeError)
    assert caplog.messages == []
