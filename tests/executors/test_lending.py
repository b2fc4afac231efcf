"""Whoever waits for a task reads the lane himself: with a real service and this test as its launcher."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from balsam_exec.client.lane import Lane
from balsam_exec.executors.direct import DirectEngine
from balsam_exec.executors.engine import Engine
from balsam_exec.executors.libensemble.story import TaskFuture
from balsam_exec.model.errors import ServiceUnavailable
from balsam_exec.model.events import Feed
from balsam_exec.model.states import JobState
from tests.executors.lane_world import DEADLINE, World
from tests.support.services import LiveService
from tests.support.warm import Template

#: Seconds within which a wait that is ended has to end.
SOON = 5.0


@pytest.fixture
def world(tmp_path: Path, template: Template) -> Iterator[World]:
    with LiveService(f"sqlite:///{tmp_path / 'balsam.db'}", tmp_path, template=template) as live:
        world = World(live, TaskFuture)
        yield world
        world.end()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


def submit(world: World, **fields: Any) -> TaskFuture:
    future = world.engine.submit(world.spec(**fields))
    assert isinstance(future, TaskFuture)
    return future


def end(future: TaskFuture, timeout: float | None = DEADLINE) -> bool:
    return future.wait_until(lambda: False, timeout)


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def lent(world: World) -> None:
    """Wait until a thread reads the lane for itself; the follower lets go of it once it was told something."""
    until(lambda: world.engine._lent)


@contextmanager
def stopped(world: World) -> Iterator[None]:
    os.kill(world.live.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(world.live.pid, signal.SIGCONT)


def lend(world: World, pool: ThreadPoolExecutor, future: TaskFuture, timeout: float | None = DEADLINE) -> Any:
    """Have a thread wait for this with the lane as its own; its future."""
    with pause_of_follower(world):
        waiting = pool.submit(end, future, timeout)
        lent(world)
    return waiting


@contextmanager
def pause_of_follower(world: World) -> Iterator[None]:
    """The follower is made to let go of the lane, as after a task."""
    engine = world.engine
    until(lambda: engine._turn.acquire(timeout=0) or tell_something(world))
    engine._offered, engine._taken = time.monotonic() + DEADLINE, True
    engine._turn.release()
    try:
        yield
    finally:
        if not engine._lent:
            engine._offered = time.monotonic()


def tell_something(world: World) -> bool:
    """Have the follower read; False."""
    world.engine._offered, world.engine._taken = time.monotonic() + DEADLINE, True
    lane = world.engine._lane
    assert lane is not None
    lane.report(world.session, [], False, lambda _: None)
    time.sleep(0.01)
    return False


def test_after_the_first_task_who_waits_hears_himself(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    tell = Engine._tell

    def heard(engine: Engine, feed: Feed) -> None:
        told.append(threading.get_ident())
        tell(engine, feed)

    monkeypatch.setattr(Engine, "_tell", heard)
    # A task of a libEnsemble worker is over in a moment, and the next one submitted at once.
    for _ in range(3):
        future = submit(world)
        finishing = threading.Thread(target=world.finish)
        with pause_of_follower(world):
            finishing.start()
            told.clear()
            assert end(future)
            finishing.join(DEADLINE)
        assert set(told) == {threading.get_ident()}


def test_all_who_wait_at_once_hear_of_their_tasks(world: World, pool: ThreadPoolExecutor) -> None:
    futures = [submit(world) for _ in range(8)]
    waiting = [pool.submit(end, future) for future in futures]
    for _ in futures:
        world.finish()
    assert all(done.result(DEADLINE) for done in waiting)


def test_who_waits_while_others_come_and_go_hears(world: World, pool: ThreadPoolExecutor) -> None:
    last = submit(world)
    [job] = world.take()
    waiting = pool.submit(end, last)
    for _ in range(5):
        future = submit(world)
        other = pool.submit(world.finish)
        assert end(future)
        other.result(DEADLINE)
    world.run([job])
    world.report([job], state=JobState.RUN_DONE)
    assert waiting.result(SOON)


@pytest.mark.parametrize("timeout", [0.0, 0.001, 0.3])
def test_a_wait_ends_in_time_though_nothing_comes(world: World, timeout: float) -> None:
    future = submit(world)
    assert world.engine.flush(DEADLINE)
    for away in (False, True):
        with ExitStack() as stack, pause_of_follower(world):
            if away:
                stack.enter_context(stopped(world))
            started = time.monotonic()
            assert not end(future, timeout)
            assert timeout <= time.monotonic() - started < timeout + SOON / 2


def test_a_wait_ends_in_time_though_the_service_dies(world: World, pool: ThreadPoolExecutor) -> None:
    future = submit(world)
    assert world.engine.flush(DEADLINE)
    started = time.monotonic()
    waiting = lend(world, pool, future, 1.0)
    world.live.kill()
    assert not waiting.result(DEADLINE)
    assert 1.0 <= time.monotonic() - started < SOON
    world.live.start()


def test_a_wait_may_be_long(world: World, pool: ThreadPoolExecutor) -> None:
    future = submit(world)
    waiting = lend(world, pool, future, 1e8)
    world.finish()
    assert waiting.result(DEADLINE)


@pytest.mark.parametrize("timeout", [0.0, 0.001])
def test_who_asks_again_and_again_without_waiting_hears(world: World, timeout: float) -> None:
    future = submit(world)
    with pause_of_follower(world):
        world.finish()
        deadline = time.monotonic() + SOON
        while not end(future, timeout):
            assert time.monotonic() < deadline
            time.sleep(0.005)


def test_who_waits_for_what_is_over_keeps_nobody_from_hearing(world: World) -> None:
    first = submit(world)
    world.finish()
    assert end(first)
    second = submit(world)
    with pause_of_follower(world):
        world.engine._offered = time.monotonic()
        assert end(first)
        finishing = threading.Thread(target=world.finish)
        finishing.start()
        deadline = time.monotonic() + SOON
        while not second.done():
            assert time.monotonic() < deadline
            assert end(first)
            time.sleep(0.005)
        finishing.join(DEADLINE)


def test_who_only_looks_hears_within_a_second(world: World) -> None:
    for _ in range(3):
        future = submit(world)
        world.finish()
        heard = time.monotonic()
        until(future.done)
        assert time.monotonic() - heard < 1.0
        assert end(future)


@pytest.mark.parametrize(
    "how",
    [
        lambda world, future: world.engine.kill([future]),
        lambda world, future: future.cancel(),
        lambda world, future: world.engine.fail_all(ServiceUnavailable("enough")),
        lambda world, future: future.set_exception(ServiceUnavailable("enough")),
        lambda world, future: future.set_result(0),
    ],
    ids=["kill", "cancel", "fail_all", "exception", "result"],
)
def test_what_another_thread_does_ends_a_wait(
    world: World, pool: ThreadPoolExecutor, how: Callable[[World, TaskFuture], object]
) -> None:
    future = submit(world)
    assert world.engine.flush(DEADLINE)
    waiting = lend(world, pool, future)
    how(world, future)
    assert waiting.result(SOON)


def test_a_wait_goes_on_when_the_service_was_away(world: World, pool: ThreadPoolExecutor) -> None:
    sent = submit(world)
    assert world.engine.flush(DEADLINE)
    waiting = [lend(world, pool, sent)]
    os.kill(world.live.pid, signal.SIGSTOP)  # the request waits for it
    unsent = submit(world)
    waiting.append(pool.submit(end, unsent))
    world.live.restart()
    world.finish(2)
    assert all(done.result(DEADLINE) for done in waiting)
    assert (sent.result(DEADLINE), unsent.result(DEADLINE)) == (0, 0)
    assert len(world.service.jobs(limit=1000).results) == 2


def test_it_ends_while_nobody_waits_and_while_somebody_does(world: World, pool: ThreadPoolExecutor) -> None:
    idle = world.new_engine()
    idle.close()
    idle.join()
    future = submit(world)
    assert world.engine.flush(DEADLINE)
    waiting = lend(world, pool, future)
    world.engine.close()
    assert not world.ended.is_set()
    world.finish()
    assert waiting.result(DEADLINE)
    assert world.ended.wait(SOON)


def test_engines_leave_no_descriptors_behind(world: World) -> None:
    world.new_engine().fail_all(ServiceUnavailable("enough"))

    def one() -> None:
        engine = world.new_engine()
        engine.close()
        engine.join()

    one()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(200):
        one()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_forked_child_leaves_it_alone(world: World, pool: ThreadPoolExecutor) -> None:
    future = submit(world)
    assert world.engine.flush(DEADLINE)
    waiting = lend(world, pool, future)
    pid = os.fork()
    if pid == 0:
        world.engine.rouse()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert not waiting.done()
    world.finish()
    assert waiting.result(DEADLINE)


# -- signals, whose handlers raise in whatever the main thread does ---------------------------------------


class Stop(BaseException):
    pass


def stop(*_: object) -> None:
    raise Stop


@pytest.fixture
def alarm() -> Iterator[None]:
    before = signal.signal(signal.SIGUSR1, stop)
    yield
    signal.signal(signal.SIGUSR1, before)


def works_on(world: World, *futures: TaskFuture) -> None:
    """What was under way comes to its end, once, and what is new does, too."""
    new = submit(world)
    until(lambda: world.engine.flush(DEADLINE))
    if left := sum(job.state is JobState.PREPROCESSED for job in world.service.jobs(limit=1000).results):
        world.finish(left)
    for future in (*futures, new):
        assert end(future)
        assert future.result(DEADLINE) == 0


def test_a_signal_while_nothing_comes(world: World, alarm: None) -> None:
    future = submit(world)
    assert world.engine.flush(DEADLINE)
    main = threading.main_thread().ident or 0

    def strike() -> None:
        lent(world)
        signal.pthread_kill(main, signal.SIGUSR1)

    with pause_of_follower(world):
        thread = threading.Thread(target=strike)
        thread.start()
        with pytest.raises(Stop):
            end(future)
        thread.join(DEADLINE)
    assert world.engine._lane is not None
    works_on(world, future)


#: Where the thread that waits may be, and where it is struck: a method, and whether before it does its work.
PLACES = [
    (Lane, "wait", True),
    (Lane, "wait", False),
    (Lane, "_receive", False),
    (DirectEngine, "_apply", False),
    (TaskFuture, "_see", True),
    (TaskFuture, "_see", False),
    (TaskFuture, "set_result", True),
    (TaskFuture, "set_result", False),
    (DirectEngine, "_register", False),
]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"{place[1]}-{'before' if place[2] else 'after'}")
def test_a_signal_in_the_midst_of_reading(
    world: World, alarm: None, monkeypatch: pytest.MonkeyPatch, place: tuple[type, str, bool]
) -> None:
    owner, name, before = place
    what = getattr(owner, name)
    struck = threading.Event()

    def struck_at(*given: Any, **options: Any) -> Any:
        if threading.current_thread() is not threading.main_thread() or struck.is_set():
            return what(*given, **options)
        if before:
            struck.set()
            signal.raise_signal(signal.SIGUSR1)
        answer = what(*given, **options)
        struck.set()
        signal.raise_signal(signal.SIGUSR1)
        return answer

    first = submit(world)
    world.finish()
    assert end(first)
    with pause_of_follower(world), monkeypatch.context() as patch:
        future = submit(world)
        finishing = threading.Thread(target=world.finish)
        finishing.start()
        patch.setattr(owner, name, struck_at)
        with pytest.raises(Stop):
            end(future)
        finishing.join(DEADLINE)
    works_on(world, future)
    assert len(world.service.jobs(limit=1000).results) == 3
