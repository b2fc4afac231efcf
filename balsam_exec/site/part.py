"""One of the small services that make up an agent."""

from __future__ import annotations

import logging
import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import timedelta

from balsam_exec.model.base import now, storable
from balsam_exec.model.errors import BalsamError
from balsam_exec.model.sites import PartStatus

log = logging.getLogger(__name__)

_FIRST_PAUSE, _LAST_PAUSE = 0.5, 30.0
#: Characters of a text in a status.
_TEXT = 1000


class Part(ABC):
    """Runs in a thread of its own, and is started again when it fails: one part's trouble never ends another's work.

    Its `status` tells people how it gets on: what it did last, and what went wrong last.
    """

    name: str

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.status = PartStatus(name=self.name, state="running")
        #: Called when it gets into trouble and when that is over.
        self.on_change: Callable[[], None] = lambda: None

    @abstractmethod
    def run(self) -> None:
        """Work until `stopped`. An exception is logged, and after a pause `run` is called again."""

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    def wait(self, timeout: float) -> bool:
        """Sleep for so many seconds, or until it is to stop; whether it is."""
        return self._stop.wait(timeout)

    def progress(self, what: str) -> None:
        """Note what it has just done, in words for a person."""
        self._now_is(state="running", progress=storable(what)[:_TEXT], progress_time=now(), retry=None)

    def trouble(self, error: object, pause: float) -> None:
        """Note what keeps it from its work, and that it tries again in so many seconds; infinite: when it is helped."""
        at = now()
        retry = None if math.isinf(pause) else at + timedelta(seconds=pause)
        self._now_is(state="retrying", error=storable(str(error))[:_TEXT], error_time=at, retry=retry)

    def _now_is(self, **changes: object) -> None:
        before, self.status = self.status, self.status.model_copy(update=changes)
        if before.state != self.status.state:
            self.on_change()

    def start(self) -> None:
        self._thread = threading.Thread(target=self._keep_running, name=self.name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask `run` to return soon. What blocks it has to be woken as well."""
        self._stop.set()

    def join(self, timeout: float) -> None:
        if self._thread is not None:
            self._thread.join(timeout)

    def close(self) -> None:
        """Release what `__init__` took, after `join`."""
        return

    def _keep_running(self) -> None:
        pause = _FIRST_PAUSE
        while not self.stopped:
            started = time.monotonic()
            try:
                self.run()
            except Exception as error:
                if self.stopped:
                    return
                if time.monotonic() - started > _LAST_PAUSE:
                    pause = _FIRST_PAUSE
                defect = not isinstance(error, BalsamError)
                log.error("%s: %s; again in %.1f s", self.name, error, pause, exc_info=defect)
                self.trouble(error if str(error) else repr(error), pause)
                self.wait(pause)
                pause = min(2 * pause, _LAST_PAUSE)
