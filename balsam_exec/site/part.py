"""One of the small services that make up an agent."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod

from balsam_exec.model.errors import BalsamError

log = logging.getLogger(__name__)

_FIRST_PAUSE, _LAST_PAUSE = 0.5, 30.0


class Part(ABC):
    """Runs in a thread of its own, and is started again when it fails: one part's trouble never ends another's work."""

    name: str

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @abstractmethod
    def run(self) -> None:
        """Work until `stopped`. An exception is logged, and after a pause `run` is called again."""

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    def wait(self, timeout: float) -> bool:
        """Sleep for so many seconds, or until it is to stop; whether it is."""
        return self._stop.wait(timeout)

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
                self.wait(pause)
                pause = min(2 * pause, _LAST_PAUSE)
