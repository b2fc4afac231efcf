"""What an agent has in hand: how much it takes, what it reports and when, over a service in memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import pytest

from balsam_exec.client.service import Service
from balsam_exec.hooks.pool import Task
from balsam_exec.model.errors import BalsamError, InvalidRequest, ServiceUnavailable
from balsam_exec.model.hooks import HookReport, Visit
from balsam_exec.model.jobs import JobPatch
from balsam_exec.model.states import JobState
from balsam_exec.site import desk as desk_module
from balsam_exec.site.desk import Desk
from tests.support.processes import wait_until

S = JobState
DONE = JobPatch(state=S.PREPROCESSED)


def visit(number: int) -> Visit:
    return Visit(number, 0, S.STAGED_IN)


class FakeService:
    """Records batches of reports; `answer` may hold them up or refuse them."""

    def __init__(self) -> None:
        self.batches: list[list[HookReport]] = []
        self.answer: Callable[[Sequence[HookReport]], None] = lambda _: None
        self.closed = threading.Event()

    def report_hooks(self, site_id: int, reports: Sequence[HookReport], deadline: float) -> list[Visit]:
        self.answer(reports)
        self.batches.append(list(reports))
        return []

    def close(self) -> None:
        self.closed.set()

    @property
    def told(self) -> list[tuple[int, JobState | None]]:
        return [(report.visit.job_id, report.patch.state) for batch in self.batches for report in batch]


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def desk(service: FakeService) -> Iterator[Desk]:
    desk = Desk(cast(Service, service), 1, workers=2)
    yield desk
    desk.close()
    assert service.closed.is_set()


def test_it_takes_as_many_as_can_be_worked_on(desk: Desk, service: FakeService) -> None:
    assert desk.wait_for_room() == 2
    for number in (1, 2):
        desk.take(visit(number))
    waiting = threading.Thread(target=desk.wait_for_room)
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive(), "there was room for a third"
    desk.report(visit(1), DONE)
    waiting.join(10)
    assert not waiting.is_alive()
    assert desk.wait_for_room() == 1


def test_quick_work_is_taken_in_advance(desk: Desk) -> None:
    for number in range(500):
        desk.take(visit(number))
        desk.report(visit(number), None)
    assert 100 < desk.wait_for_room() <= 252


def test_one_report_is_under_way_and_the_others_gather(desk: Desk, service: FakeService) -> None:
    held = threading.Event()
    service.answer = lambda _: cast(None, held.wait(10))
    for number in range(1, 12):
        desk.take(visit(number))
        desk.report(visit(number), DONE)
        if number == 1:
            wait_until(lambda: desk._outbox == [], 10, "the first report to be under way")
    assert len(desk.visits()) == 11, "they are in hand until the service has heard of them"
    held.set()
    wait_until(lambda: not desk.visits(), 10, "all reports")
    assert [len(batch) for batch in service.batches] == [1, 10]


def test_what_is_refused_takes_no_other_with_it(desk: Desk, service: FakeService) -> None:
    def refuse(reports: Sequence[HookReport]) -> None:
        if any(report.visit.job_id == 2 and report.patch.state is S.PREPROCESSED for report in reports):
            raise InvalidRequest("too odd")

    gate = threading.Event()
    service.answer = lambda _: cast(None, gate.wait(10))
    desk.take(visit(9))
    desk.report(visit(9), DONE)
    for number in (1, 2, 3):
        desk.take(visit(number))
        desk.report(visit(number), DONE)
    service.answer = refuse
    gate.set()
    wait_until(lambda: not desk.visits(), 10, "all reports")
    assert sorted(service.told) == [(1, S.PREPROCESSED), (2, S.FAILED), (3, S.PREPROCESSED), (9, S.PREPROCESSED)]
    [failed] = [report for batch in service.batches for report in batch if report.visit.job_id == 2]
    assert failed.patch.state_data == {"hook": "preprocess", "error": "what it set in self.job is refused: too odd"}


@pytest.mark.parametrize("error", [ServiceUnavailable("away"), BalsamError("a defect over there")])
def test_it_goes_on_trying(
    desk: Desk, service: FakeService, error: BalsamError, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk_module, "_PAUSE", 0.01)
    problems = [error, error]

    def fail(_: object) -> None:
        if problems:
            raise problems.pop()

    service.answer = fail
    desk.take(visit(1))
    desk.report(visit(1), DONE)
    wait_until(lambda: not desk.visits(), 10, "the report")
    assert service.told == [(1, S.PREPROCESSED)]


def test_how_long_it_is_in_hand(desk: Desk) -> None:
    assert desk.age(visit(1)) is None
    desk.take(visit(1))
    first, second = desk.age(visit(1)), desk.age(visit(1))
    assert first is not None
    assert second is not None
    assert 0 <= first <= second < 60
    desk.report(visit(1), None)
    assert desk.age(visit(1)) is None


def test_who_works_on_what_is_over_is_told(desk: Desk) -> None:
    tasks: list[Any] = [Task(lambda: None, 1, lambda _: None) for _ in range(2)]
    ended: list[Any] = []
    for number, task in enumerate(tasks):
        desk.take(visit(number))
        task.cancel = lambda task=task: ended.append(task)
        desk.assign(visit(number), task)
    desk.over([visit(1), visit(7)])
    assert ended == [tasks[1]]
    desk.report(visit(1), None)
    assert desk.visits() == [visit(0)]


def test_closing_reports_what_is_left(service: FakeService) -> None:
    desk = Desk(cast(Service, service), 1, workers=2)
    desk.take(visit(1))
    desk.report(visit(1), DONE)
    desk.close()
    assert service.told == [(1, S.PREPROCESSED)]
    assert desk.wait_for_room() == 0


def test_closing_does_not_wait_for_a_service_that_is_away(service: FakeService) -> None:
    def away(_: object) -> None:
        service.closed.wait(30)
        raise ServiceUnavailable("closed")

    service.answer = away
    desk = Desk(cast(Service, service), 1, workers=2)
    desk.take(visit(1))
    desk.report(visit(1), DONE)
    started = time.monotonic()
    desk.close()
    assert time.monotonic() - started < 10
