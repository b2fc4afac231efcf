"""The transport of the service's connections: what it makes of writes, and of stopping to read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from balsam_exec.server.run import _SHORT, _Gathering


class Transport:
    """Notes what comes to it."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def write(self, data: bytes) -> None:
        self.heard.append(data)

    def pause_reading(self) -> None:
        self.heard.append("pause")

    def resume_reading(self) -> None:
        self.heard.append("resume")

    def set_protocol(self, _: asyncio.BaseProtocol) -> None:
        self.heard.append("protocol")

    def close(self) -> None:
        self.heard.append("close")


def heard(*turns: Callable[[_Gathering], object]) -> list[list[Any]]:
    """What has come to the transport by the end of each turn, and after the last."""
    found = []

    async def run() -> None:
        transport = Transport()
        gathering = _Gathering(cast(asyncio.Transport, transport), asyncio.get_running_loop())
        for turn in turns:
            turn(gathering)
            found.append(list(transport.heard))
            await asyncio.sleep(0)
        found.append(transport.heard)

    asyncio.run(run())
    return found


def both(*parts: Callable[[_Gathering], object]) -> Callable[[_Gathering], object]:
    return lambda gathering: [part(gathering) for part in parts]


def write(data: bytes) -> Callable[[_Gathering], object]:
    return lambda gathering: gathering.write(data)


def pause(gathering: _Gathering) -> None:
    gathering.pause_reading()


def resume(gathering: _Gathering) -> None:
    gathering.resume_reading()


def upgrade(gathering: _Gathering) -> None:
    gathering.set_protocol(asyncio.Protocol())


def test_what_is_written_in_one_turn_goes_together() -> None:
    assert heard(both(write(b"head"), write(b"body")), write(b"next")) == [[], [b"headbody"], [b"headbody", b"next"]]


def test_what_is_large_goes_at_once_after_what_came_before() -> None:
    large = b"x" * (_SHORT + 1)
    assert heard(both(write(b"head"), write(large))) == [[b"head" + large]] * 2
    assert heard(both(write(b"last"), lambda gathering: gathering.close())) == [[b"last", "close"]] * 2


def test_a_websockets_frames_go_at_once_and_in_order() -> None:
    assert heard(both(upgrade, write(b"one"), write(b"two")))[0] == ["protocol", b"one", b"two"]
    # What was written before the upgrade, in the same turn, goes first.
    assert heard(both(write(b"head"), upgrade, write(b"one")))[-1] == ["protocol", b"headone"]


def test_to_stop_and_go_on_in_one_turn_is_nothing() -> None:
    assert heard(both(pause, resume), both(pause, resume, pause, resume)) == [[], [], []]


@pytest.mark.parametrize("last", [pause, both(pause, pause), both(pause, resume, pause)])
def test_who_stops_reading_does_so_in_the_next_turn_and_once(last: Callable[[_Gathering], object]) -> None:
    assert heard(last) == [[], ["pause"]]
    assert heard(last, resume, last) == [[], ["pause", "resume"], ["pause", "resume"], ["pause", "resume", "pause"]]


def test_who_has_stopped_need_not_stop_again() -> None:
    assert heard(pause, pause, resume, resume)[-1] == ["pause", "resume"]
