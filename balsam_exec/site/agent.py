"""The agent: keeps the parts of a site running until it is told to stop."""

from __future__ import annotations

import fcntl
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from balsam_exec.client.service import Service
from balsam_exec.model.errors import BalsamError, ConfigurationError, ServiceUnavailable
from balsam_exec.model.sites import SiteRecord
from balsam_exec.platform.settings import SiteDirectory
from balsam_exec.site.allocations import Allocations
from balsam_exec.site.cleaner import FileCleaner
from balsam_exec.site.elastic import Provisioner, provisioners
from balsam_exec.site.files import Files
from balsam_exec.site.heartbeat import Heartbeat
from balsam_exec.site.part import Part
from balsam_exec.site.processing import Processing
from balsam_exec.site.registration import attach

log = logging.getLogger(__name__)

#: Seconds between two tries to reach the service at the start.
_RETRY = 5.0
#: Seconds for the parts to come to an end; their threads are daemons, so one that hangs cannot keep the process.
_PATIENCE = 5.0


class Agent:
    """`start` returns at once: the service may be away for long. `on_ready` is called with the site's record once the
    agent serves it, `on_error` with what makes that impossible; both from a thread of the agent's."""

    def __init__(
        self,
        connect: Callable[[], Service],
        site: SiteDirectory,
        *,
        register: bool,
        on_ready: Callable[[SiteRecord], None],
        on_error: Callable[[BalsamError], None],
    ) -> None:
        self._connect = connect
        self._site = site
        self._register = register
        self._on_ready = on_ready
        self._on_error = on_error
        self._service: Service | None = None
        self._allocations: Allocations | None = None
        self._parts: list[Part] = []
        self._stopped = threading.Event()
        self._starting = threading.Lock()
        self._starter = threading.Thread(target=self._bring_up, name="starter", daemon=True)

    def start(self) -> None:
        self._starter.start()

    def stop(self, drain_timeout: float | None = None) -> None:
        """Come to an end. The site's allocations go on, unless there is a `drain_timeout`: then they are cancelled and
        have so many seconds to end. Launchers of theirs go on with their work and the next agent finds them again."""
        with self._starting:  # from here on no part is started
            self._stopped.set()
        for part in self._parts:
            if isinstance(part, Provisioner):  # nothing new is requested from here on
                part.stop()
        if drain_timeout is not None and self._allocations is not None and not self._allocations.drain(drain_timeout):
            log.warning("some allocations did not end in %.0f s", drain_timeout)
        for part in self._parts:
            part.stop()
        if self._service is not None:
            self._service.close()
        for part in self._parts:
            part.join(_PATIENCE)
            part.close()

    def _bring_up(self) -> None:
        try:
            record = self._attached()
        except BalsamError as error:
            if not self._stopped.is_set():
                self._on_error(error)
            return
        if record is None or self._service is None:
            return
        with self._starting:
            if self._stopped.is_set():
                return
            settings = self._site.settings()
            self._allocations = Allocations(self._service, record.id, self._site, settings)
            self._parts = [
                self._allocations,
                Heartbeat(self._service, record.id),
                Files(self._service, record.id, self._site.data),
                Processing(self._service, record.id, self._site.data, settings.processing),
            ]
            if settings.file_cleaner.enabled:
                self._parts.append(FileCleaner(self._service, record, self._site))
            self._parts += provisioners(self._service, record.id, settings, self._allocations.windows)
            for part in self._parts:
                part.start()
        log.info("serving site %s (%s) at %s", record.name, record.id, self._service.url)
        self._on_ready(record)

    def _attached(self) -> SiteRecord | None:
        while not self._stopped.is_set():
            try:
                self._service = self._connect()
                return attach(self._service, self._site, register=self._register)
            except ServiceUnavailable as error:
                log.warning("%s; trying again", error)
                self._stopped.wait(_RETRY)
        return None


@contextmanager
def lock_site(site: SiteDirectory) -> Iterator[None]:
    """What one agent of a site at a time can have. Raises ConfigurationError when another one has it."""
    with (site.path / "agent.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(f"another agent serves {site.path}") from None
        yield
