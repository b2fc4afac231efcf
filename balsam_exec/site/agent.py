"""The agent: keeps the parts of a site running until it is told to stop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from balsam_exec.client.service import Service
from balsam_exec.model.errors import BalsamError, ConfigurationError, ServiceUnavailable
from balsam_exec.model.sites import AgentProcess, PartStatus, SiteRecord
from balsam_exec.platform.schedulers import Window
from balsam_exec.platform.settings import SiteDirectory, SiteSettings
from balsam_exec.site.allocations import Allocations
from balsam_exec.site.elastic import Provisioner
from balsam_exec.site.heartbeat import Heartbeat
from balsam_exec.site.lease import Lease
from balsam_exec.site.part import Part
from balsam_exec.site.recipes import Recipe, recipes
from balsam_exec.site.registration import record_of, update_record
from balsam_exec.site.settings_watch import SettingsWatch

log = logging.getLogger(__name__)

#: Seconds between two tries to reach the service at the start.
_RETRY = 5.0
#: Seconds for the parts to come to an end; their threads are daemons, so one that hangs cannot keep the process.
_PATIENCE = 5.0


class Agent:
    """`start` returns at once: the service may be away for long. `on_ready` is called with the site's record once the
    agent serves it, `on_error` with what makes that impossible, at the start or later; both from a thread of the
    agent's."""

    def __init__(
        self,
        connect: Callable[[], Service],
        site: SiteDirectory,
        me: AgentProcess,
        *,
        register: bool,
        on_ready: Callable[[SiteRecord], None],
        on_error: Callable[[BalsamError], None],
    ) -> None:
        self._connect = connect
        self._site = site
        self._lease = Lease(me)
        self._register = register
        self._on_ready = on_ready
        self._on_error = on_error
        self._service: Service | None = None
        self._record: SiteRecord | None = None  #: None: it has no lease
        self._settings: SiteSettings | None = None  #: those in use
        self._heart: Heartbeat | None = None
        self._overseers: list[Part] = []  #: the parts for the agent itself, the heart among them
        self._parts: dict[str, tuple[Recipe, Part]] = {}  #: those that work for the site
        self._stopped = threading.Event()
        self._changing = threading.Lock()  #: held while parts are started or stopped
        self._starter = threading.Thread(target=self._bring_up, name="starter", daemon=True)

    def start(self) -> None:
        self._starter.start()

    def stop(self, drain_timeout: float | None = None) -> None:
        """Come to an end. The site's allocations go on, unless there is a `drain_timeout`: then they are cancelled and
        have so many seconds to end. Launchers of theirs go on with their work and the next agent finds them again."""
        with self._changing:  # from here on no part is started
            self._stopped.set()
        for part in self._workers():
            if isinstance(part, Provisioner):  # nothing new is requested from here on
                part.stop()
        allocations = self._allocations()
        if drain_timeout is not None and allocations is not None and not allocations.drain(drain_timeout):
            log.warning("some allocations did not end in %.0f s", drain_timeout)
        _end([*self._workers(), *self._overseers], self._service)
        if self._service is not None and self._record is not None:
            self._lease.release(self._service, self._record.id)

    def reload(self) -> str:
        """Take over the settings as they are now; what that changed, for people. Parts whose settings are the same go
        on undisturbed, and so do allocations. Raises ConfigurationError if the settings are wrong: all stays as it was.
        """
        with self._changing:
            if self._stopped.is_set() or self._record is None or self._service is None:
                return "the agent is not serving the site"
            settings = self._site.settings()
            if settings.site_id != self._record.id:
                raise ConfigurationError(f"site_id is {settings.site_id} now: start the agent anew to serve that site")
            if settings == self._settings:
                return "settings.yml says what it said"
            if self._settings is None or settings.allowed != self._settings.allowed:
                update_record(self._service, self._record.id, self._site)
            changed = self._work_by(settings, self._service, self._record)
            self._tell_soon()
        log.info("took over settings.yml: %s", changed)
        return f"took over settings.yml: {changed}"

    def _work_by(self, settings: SiteSettings, service: Service, record: SiteRecord) -> str:
        """Have the parts that these settings ask for; the names of those that were started or ended."""
        wanted = recipes(service, record, self._site, settings, self._windows)
        stale = [
            name
            for name, (recipe, _) in self._parts.items()
            if name not in wanted or wanted[name].settings != recipe.settings
        ]
        _end([self._parts.pop(name)[1] for name in stale])
        new = [name for name in wanted if name not in self._parts]
        for name in new:
            part = wanted[name].make()
            part.on_change = self._tell_soon
            self._parts[name] = wanted[name], part
            part.start()
        self._settings = settings
        return ", ".join(dict.fromkeys([*stale, *new])) or "nothing that concerns a part"

    def _bring_up(self) -> None:
        try:
            service, record = self._attached()
        except BalsamError as error:
            if not self._stopped.is_set():
                self._on_error(error)
            return
        except _Stopped:
            return
        with self._changing:
            if self._stopped.is_set():
                return
            self._work_by(self._site.settings(), service, record)
            self._heart = Heartbeat(service, record.id, self._lease, self._statuses, self._on_error)
            watch = SettingsWatch(service, record.id, self.reload)
            watch.on_change = self._tell_soon
            self._overseers = [self._heart, watch]
            for part in self._overseers:
                part.start()
        log.info("serving site %s (%s) at %s", record.name, record.id, service.url)
        self._on_ready(record)

    def _attached(self) -> tuple[Service, SiteRecord]:
        """The service, with the lease of the site taken."""
        while not self._stopped.is_set():
            try:
                self._service = service = self._connect()
                record = record_of(service, self._site, register=self._register)
                self._record = self._lease.take(service, record.id)
                self._record = update_record(service, record.id, self._site)
                return service, self._record
            except ServiceUnavailable as error:
                log.warning("%s; trying again", error)
                self._stopped.wait(_RETRY)
        raise _Stopped

    def _workers(self) -> list[Part]:
        return [part for _, part in self._parts.values()]

    def _statuses(self) -> list[PartStatus]:
        return [part.status for part in [*self._workers(), *self._overseers]]

    def _tell_soon(self) -> None:
        if self._heart is not None:
            self._heart.wake()

    def _allocations(self) -> Allocations | None:
        _, part = self._parts.get(Allocations.name, (None, None))
        return part if isinstance(part, Allocations) else None

    def _windows(self) -> Sequence[Window]:
        allocations = self._allocations()
        return [] if allocations is None else allocations.windows()


class _Stopped(Exception):
    """It was told to stop before it had begun."""


def _end(parts: Sequence[Part], service: Service | None = None) -> None:
    """Stop the parts, all at a time; `service` is what they have in common."""
    for part in parts:
        part.stop()
    if service is not None:
        service.close()
    for part in parts:
        part.join(_PATIENCE)
        part.close()
