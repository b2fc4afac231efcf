"""A part of the agent is started again when it fails."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import pytest

from balsam_exec.model.errors import BalsamError, ServiceUnavailable
from balsam_exec.site import part
from balsam_exec.site.part import Part


class Scripted(Part):
    """Does one thing after the other, each time it is run the next; then works until it is stopped."""

    name = "scripted"

    def __init__(self, *script: Callable[[], None]) -> None:
        super().__init__()
        self._script = list(script)
        self.working = threading.Event()

    def run(self) -> None:
        if self._script:
            self._script.pop(0)()
        else:
            self.working.set()
            self.wait(60)


def fail_with(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part, "_FIRST_PAUSE", 0.01)


@pytest.mark.parametrize(
    ("error", "traceback"),
    [(RuntimeError("a defect"), True), (BalsamError("final"), False), (ServiceUnavailable("away"), False)],
)
def test_a_failure_is_logged_and_mended(error: Exception, traceback: bool, caplog: pytest.LogCaptureFixture) -> None:
    scripted = Scripted(fail_with(error), fail_with(error))
    with caplog.at_level(logging.ERROR):
        scripted.start()
        assert scripted.working.wait(10)
    scripted.stop()
    scripted.join(10)
    assert [record.exc_info is not None and bool(record.exc_info) for record in caplog.records] == [traceback] * 2
    assert str(error) in caplog.text


def test_what_fails_because_it_is_stopped_is_not_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    class Interrupted(Part):
        name = "interrupted"

        def run(self) -> None:
            self.wait(60)
            raise ServiceUnavailable("the connection was closed")

    interrupted = Interrupted()
    interrupted.start()
    interrupted.stop()
    interrupted.join(10)
    assert caplog.records == []
