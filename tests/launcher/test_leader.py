"""Crews that are started, told to end and waited for; and what has a launcher end."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from balsam_exec.launcher import launcher
from balsam_exec.launcher.crews import Crew
from balsam_exec.launcher.launcher import obey_orders
from balsam_exec.launcher.leader import CrewStart, Leader
from balsam_exec.launcher.reactor import Reactor
from tests.support.processes import wait_until

CREW = Crew(0, "serial", {}, ("a", "b"))


def bash(script: str, until_eof: bool = False) -> CrewStart:
    return CrewStart(CREW, ["bash", "-c", script], until_eof)


class Running:
    """A leader in a thread."""

    def __init__(self, *starts: CrewStart) -> None:
        self.leader = Leader(starts)
        self._went_well: bool | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self._went_well = self.leader.run()

    def end(self) -> bool:
        self._thread.join(20)
        assert self._went_well is not None, "the leader did not end"
        return self._went_well


def test_all_crews_end_by_themselves(tmp_path: Path) -> None:
    assert Running(bash(f"touch {tmp_path}/one"), bash(f"touch {tmp_path}/two", until_eof=True)).end()
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}


@pytest.mark.parametrize("bad", [bash("exit 3"), CrewStart(CREW, ["/no/such/program"])])
def test_one_that_fails_does_not_end_the_others(bad: CrewStart, tmp_path: Path) -> None:
    assert not Running(bad, bash(f"touch {tmp_path}/other")).end()
    assert (tmp_path / "other").exists()


def test_crews_are_told_to_end_each_in_its_way(tmp_path: Path) -> None:
    ready, ended = [[tmp_path / f"{word}-{name}" for name in ("term", "eof")] for word in ("ready", "ended")]
    hears = f"trap 'touch {ended[0]}; exit 0' TERM; touch {ready[0]}; while :; do sleep 0.01; done"
    reads = f"trap '' TERM; touch {ready[1]}; read; touch {ended[1]}"
    running = Running(bash(hears), bash(reads, until_eof=True))
    wait_until(lambda: all(path.exists() for path in ready), 20, "both crews")
    running.leader.drain("enough")
    assert running.end()
    assert all(path.exists() for path in ended)


def test_told_again_those_end_that_did_not_listen(tmp_path: Path) -> None:
    running = Running(bash(f"touch {tmp_path}/ready; exec sleep 300", until_eof=True))
    wait_until((tmp_path / "ready").exists, 20, "the crew")
    running.leader.drain("enough")
    running.leader.drain("enough!")
    assert not running.end()


def test_at_once_it_leaves_them_to_its_guardian() -> None:
    running = Running(bash("exec sleep 300"))
    running.leader.drain("its guardian is gone", at_once=True)
    assert not running.end()
    [(_, process)] = running.leader._living.values()
    assert process.poll() is None
    process.kill()
    process.wait()


# --- what has it end


class Told:
    """Something that runs, and the reasons for which it was to end."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        self.reasons: list[str] = []

    def drain(self, reason: str, at_once: bool = False) -> None:
        self.reasons.append(reason)


@pytest.fixture
def told() -> Iterator[Told]:
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.getsignal(signum) for signum in signals]
    made = Told()
    yield made
    for signum, handler in zip(signals, before, strict=True):
        signal.signal(signum, handler)
    made.reactor.close()


@pytest.mark.parametrize(("echo", "times"), [(60, 1), (0, 2)])
def test_a_signal_that_comes_again_at_once_is_the_same(
    told: Told, echo: float, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "_ECHO", echo)
    obey_orders(told)
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    assert told.reasons == ["the launcher got SIGTERM"] * times


def test_the_end_of_standard_input(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        obey_orders(told, until_eof=True)
        os.write(writer, b"whatever")
        told.reactor.run(20)
        assert told.reasons == []
        os.close(writer)
        told.reactor.run(20)
        assert told.reasons == ["the launcher was told to end"]
