"""What one process has of its own: connections, an engine, a name. Executors travel between processes, it does not."""

from __future__ import annotations

import logging
import multiprocessing.util
import os
import socket
import threading
import time
import uuid
from typing import Any

from balsam_exec.api.binding import Client
from balsam_exec.client.service import Service
from balsam_exec.executors.allocation import NoAllocation
from balsam_exec.executors.direct import DirectEngine
from balsam_exec.executors.engine import PATIENCE_SEC, Engine
from balsam_exec.executors.libensemble.story import WATCHED, TaskFuture
from balsam_exec.model.jobs import Result

log = logging.getLogger(__name__)

#: The tags that every job of an executor carries: the workflow's name, and that of the process that submitted it.
WORKFLOW_TAG, CLIENT_TAG = "libe", "libe_client"
#: Seconds that a process that ends gives the service to take what it has submitted.
FLUSH_SEC = 60.0

_lock = threading.Lock()


def _forget_lock() -> None:
    global _lock
    _lock = threading.Lock()  # another thread of the parent may have held it


os.register_at_fork(after_in_child=_forget_lock)


class Session:
    """The service as this process uses it. Made with `session_of`; a child that was forked makes one of its own."""

    def __init__(self, service: Service, workflow: str) -> None:
        self.pid = os.getpid()
        self.name = f"{socket.gethostname()}-{self.pid}-{uuid.uuid4().hex[:8]}"
        self.service = service.sibling()
        self.client = Client(self.service)
        self._workflow = workflow
        self._engine: Engine | None = None

    @property
    def tags(self) -> dict[str, str]:
        """Of the jobs that this process submits; the feed is followed by them. The first one is to tell most: the
        service wakes whoever follows it."""
        return {CLIENT_TAG: self.name, WORKFLOW_TAG: self._workflow}

    @property
    def engine(self) -> Engine:
        """Made when it is first needed: a service that is away at this moment is waited for."""
        with _lock:
            if self._engine is None:
                self.service.health(deadline=PATIENCE_SEC)
                self._engine = self.engine_for(self.tags)
                # Also in children of multiprocessing, which run no atexit functions.
                multiprocessing.util.Finalize(None, self.flush, exitpriority=100)
            return self._engine

    def engine_for(self, tags: dict[str, str]) -> Engine:
        return DirectEngine(self.service, tags, _result_itself, NoAllocation(), future=TaskFuture, watched=WATCHED)

    def flush(self) -> None:
        """Wait until the service has all that was submitted: jobs go on when this process ends, its threads do not."""
        engine = self._engine
        if engine is None or self.pid != os.getpid():
            return
        started = time.monotonic()
        if not engine.flush(FLUSH_SEC):
            log.error(
                "%d tasks did not reach %s in %.0f s and are lost with this process",
                sum(future.job_id is None for future in engine.pending()),
                self.service.url,
                time.monotonic() - started,
            )


def session_of(service: Service, workflow: str, present: Session | None) -> Session:
    """`present`, if it is this process's, else a new one."""
    with _lock:
        return present if present is not None and present.pid == os.getpid() else Session(service, workflow)


def _result_itself(result: Result) -> Any:
    return result
