"""Starts the launchers of several crews, has them end when it is told to, and waits for all of them."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from balsam_exec.launcher.crews import Crew
from balsam_exec.launcher.events import Drain
from balsam_exec.launcher.reactor import Reactor, open_pidfd

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CrewStart:
    """How the launchers of a crew are started."""

    crew: Crew
    words: list[str]
    until_eof: bool = False  #: whether they end with their standard input; the others are sent SIGTERM


class Leader:
    """Runs crews until all have ended. It only starts and ends them: each launcher has a session of its own."""

    def __init__(self, starts: Sequence[CrewStart]) -> None:
        self.reactor = Reactor()
        self._starts = starts
        self._living: dict[int, tuple[CrewStart, subprocess.Popen[bytes]]] = {}  #: by pidfd
        self._failed = False
        self._ending = False

    def drain(self, reason: str, at_once: bool = False) -> None:
        """End the launchers: for signal handlers and other threads."""
        self.reactor.post(Drain(reason, at_once))

    def run(self) -> bool:
        """Whether all of them ended as they should."""
        try:
            for start in self._starts:
                self._start(start)
            while self._living:
                for event in self.reactor.run(None):
                    assert isinstance(event, Drain)
                    if event.at_once:  # what is left has a guardian, which ends it when we are gone
                        return False
                    self._end(event.reason)
        finally:
            self.reactor.close()
        return not self._failed

    def _start(self, start: CrewStart) -> None:
        stdin = subprocess.PIPE if start.until_eof else subprocess.DEVNULL
        try:
            process = subprocess.Popen(start.words, stdin=stdin, start_new_session=True)
            pidfd = open_pidfd(process)
        except OSError as error:
            log.error("crew %d cannot be started by %s: %s", start.crew.index, start.words[0], error)
            self._failed = True
            return
        log.info("crew %d, %s on %s: process %d", start.crew.index, start.crew.job_mode, start.crew.hosts, process.pid)
        self._living[pidfd] = (start, process)
        self.reactor.watch(pidfd, lambda _: self._ended(pidfd))

    def _ended(self, pidfd: int) -> None:
        start, process = self._living.pop(pidfd)
        self.reactor.forget(pidfd)
        os.close(pidfd)
        code = process.wait()
        if process.stdin is not None:
            process.stdin.close()
        log.log(logging.WARNING if code else logging.INFO, "crew %d ended with code %d", start.crew.index, code)
        self._failed = self._failed or code != 0

    def _end(self, reason: str) -> None:
        """The first time they may take their time."""
        log.info("the crews are told to end: %s", reason)
        for start, process in self._living.values():
            if process.stdin is not None:
                process.stdin.close()
            if self._ending or not start.until_eof:
                with suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)
        self._ending = True
