"""Functions by content: small or new ones travel with the call, others become apps, and run all the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from balsam_exec import BalsamPoolExecutor
from balsam_exec.apps import codec
from balsam_exec.embedded import Deployment
from balsam_exec.executors.calls import Calls
from balsam_exec.model.base import MAX_ENTITY
from balsam_exec.model.errors import PayloadError, TooLarge
from tests.executors.fake import FakeService

DEADLINE = 60


def large(summand: int) -> Callable[[int], int]:
    """A function that travels by value, with some ballast."""
    table = np.arange(200) + summand
    return lambda index: int(table[index])


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def calls(service: FakeService) -> Calls:
    return Calls(service, 1)


def test_a_reference_goes_with_every_call(calls: Calls) -> None:
    for _ in range(3):
        app, arguments = calls.encode(pow, (2, 3), {})
        assert app is None
        function, rest = codec.split_call(arguments)
        assert codec.loads(function) is pow
        assert codec.loads(rest) == ((2, 3), {})


def test_a_function_becomes_an_app_when_it_is_seen_again(service: FakeService, calls: Calls) -> None:
    function = large(0)
    first, with_function = calls.encode(function, (1,), {})
    second, arguments = calls.encode(function, (2,), {})
    third, _ = calls.encode(large(0), (3,), {})  # the same content
    assert first is None
    assert second is not None
    assert second is third
    assert len(arguments) < len(with_function) / 10
    assert codec.loads(arguments) == ((2,), {})
    assert len(service.apps) == 1  # the common one; the engine registers the others


def test_closures_made_anew_leave_no_apps(calls: Calls) -> None:
    assert [calls.encode(large(n), (0,), {})[0] for n in range(1100)] == [None] * 1100
    assert calls.encode(large(0), (0,), {})[0] is None  # and it does not remember them for ever
    assert calls.encode(large(1099), (0,), {})[0] is not None


def test_what_cannot_travel(calls: Calls) -> None:
    with pytest.raises(PayloadError):
        calls.encode((i for i in range(3)).__next__, (), {})
    with pytest.raises(TooLarge, match="the arguments"):
        calls.encode(len, (bytes(MAX_ENTITY),), {})


def test_it_runs_by_either_way(deployment: Deployment) -> None:
    function = large(7)
    with BalsamPoolExecutor(2) as pool:
        results = [pool.submit(function, index).result(DEADLINE) for index in range(3)]
        assert results == [7, 8, 9]
        with pytest.raises(IndexError) as failure:
            pool.submit(function, 1000).result(DEADLINE)
        assert "table[index]" in str(failure.value.__cause__)
        apps = deployment.service().apps(limit=1000).results
    assert [app.name for app in apps if app.payload and (codec.load_call_app(app.payload) or ((), None))[1]]
