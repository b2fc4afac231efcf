"""How tasks report to Parsl's monitoring: through files, gathered by a thread.

Parsl's own FilesystemRadio has a process for each executor gather them, which costs seconds at start and shutdown (each
imports Parsl and the user's script); and all executors of a run share one directory, where their processes race.
"""

from __future__ import annotations

import logging
import os
import pickle
import tempfile
import threading
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

from parsl.monitoring.radios.base import MonitoringRadioReceiver
from parsl.monitoring.radios.filesystem import FilesystemRadio, FilesystemRadioSender

log = logging.getLogger(__name__)

#: Seconds between two looks at the directory, as in Parsl.
PERIOD_SEC = 1.0


class DirectoryRadio(FilesystemRadio):
    """Messages are files in a directory of this executor's own in Parsl's run directory.

    To the workers it goes as Parsl's radio with that directory.
    """

    def create_receiver(self, *, run_dir: str, resource_msgs: Queue[Any]) -> MonitoringRadioReceiver:
        self.run_dir = tempfile.mkdtemp(prefix="monitoring-", dir=run_dir)
        return _Receiver(Path(FilesystemRadioSender(run_dir=self.run_dir).new_path), resource_msgs)

    def __reduce__(self) -> tuple[Any, ...]:
        return FilesystemRadio, (), self.__dict__


class _Receiver(MonitoringRadioReceiver):
    def __init__(self, directory: Path, messages: Queue[Any]) -> None:
        self._directory = directory
        self._messages = messages
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="balsam-parsl-radio", daemon=True)
        self._thread.start()

    def shutdown(self) -> None:
        """Deliver what is there, and end."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(PERIOD_SEC):
            self._deliver()
        self._deliver()

    def _deliver(self) -> None:
        with os.scandir(self._directory) as entries:
            files = sorted(entries, key=lambda entry: entry.stat().st_mtime_ns)
        for entry in files:
            try:
                self._messages.put(pickle.loads(Path(entry).read_bytes()))
            except (pickle.UnpicklingError, EOFError) as error:
                log.warning("a message to Parsl's monitoring is not readable: %s", error)
            os.unlink(entry)
