"""Which service the resource classes talk to: the configured one, or that of an explicit `Client`."""

from __future__ import annotations

import os
import threading
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from balsam_exec.api.completion import Completions
from balsam_exec.client.apps import app_named
from balsam_exec.client.config import credentials_path, load_service
from balsam_exec.client.files import JobFiles
from balsam_exec.client.service import Service
from balsam_exec.client.sites import site_id
from balsam_exec.model.apps import AppRecord
from balsam_exec.model.errors import InvalidRequest

if TYPE_CHECKING:
    from balsam_exec.api.apps import App
    from balsam_exec.api.batch_jobs import BatchJob
    from balsam_exec.api.events import EventLog
    from balsam_exec.api.jobs import Job
    from balsam_exec.api.sites import Site
    from balsam_exec.api.transfers import TransferItem


class Client:
    """The resource classes of one service, so that a program may use several.

    `Client(Service(url, token)).Job` is used like `balsam_exec.api.Job`, which belongs to the configured service:

        away = Client(Service("https://balsam.example.org", token))
        away.Job.objects.filter(state="FAILED").count()
    """

    def __init__(self, service: Service | None = None) -> None:
        """Raises ConfigurationError when no service is given and none is configured."""
        self.service = load_service() if service is None else service
        self._synced: WeakKeyDictionary[type, AppRecord] = WeakKeyDictionary()
        self._completions: Completions | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Client({self.service!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Client, (self.service,)

    @cached_property
    def Site(self) -> type[Site]:
        from balsam_exec.api.sites import Site

        return Site.bound_to(self)

    @cached_property
    def App(self) -> type[App]:
        from balsam_exec.api.apps import App

        return App.bound_to(self)

    @cached_property
    def Job(self) -> type[Job]:
        from balsam_exec.api.jobs import Job

        return Job.bound_to(self)

    @cached_property
    def BatchJob(self) -> type[BatchJob]:
        from balsam_exec.api.batch_jobs import BatchJob

        return BatchJob.bound_to(self)

    @cached_property
    def EventLog(self) -> type[EventLog]:
        from balsam_exec.api.events import EventLog

        return EventLog.bound_to(self)

    @cached_property
    def TransferItem(self) -> type[TransferItem]:
        from balsam_exec.api.transfers import TransferItem

        return TransferItem.bound_to(self)

    @cached_property
    def files(self) -> JobFiles:
        return JobFiles(self.service)

    @property
    def completions(self) -> Completions:
        """What tells of ended jobs: one follower of the feed for all who wait in this process."""
        with self._lock:
            if self._completions is None or self._completions.pid != os.getpid():
                self._completions = Completions(self.service)
            return self._completions

    # --- from what people write to ids

    def site_id(self, site: Any = None) -> int:
        """The id of a site given by id, name or object; of the default site for None.

        Raises DoesNotExist, and InvalidRequest when there is no default.
        """
        return site_id(self.service, site)

    def app(self, app: Any, site: Any = None) -> AppRecord:
        """The app given by id, name (at `site`, or wherever it is unique, or at the default site) or class.

        A class that this client has not registered yet is registered now.
        """
        if isinstance(app, type):
            return self._synced.get(app) or self.sync(app)
        if isinstance(app, int):
            return self.service.app(app)
        if isinstance(app, str):
            return app_named(self.service, app.rpartition(".")[2], site)
        if isinstance(found_id := getattr(app, "id", None), int):
            return self.service.app(found_id)
        raise InvalidRequest(f"an app is given by its class, name or id, not by {app!r}")

    def sync(self, app: type) -> AppRecord:
        """Register an ApplicationDefinition here, or replace what was registered under its name and site."""
        from balsam_exec.api.apps import app_spec_of

        spec = app_spec_of(app, self)
        if spec.payload is not None:
            self.service.check_entity(spec.payload, f"the app {spec.name}")
        record = self.service.put_app(spec)
        self._synced[app] = record
        return record

    def synced(self, app: type) -> AppRecord | None:
        """What this client registered for the class, if it has."""
        return self._synced.get(app)

    def adopt(self, app: type, record: AppRecord) -> None:
        """Take the class for the one that is registered: it was made from the record, or renamed."""
        self._synced[app] = record


_default: tuple[object, Client] | None = None


def default_client() -> Client:
    """The client of the configured service; a new one when the configuration has changed.

    Raises ConfigurationError when there is none.
    """
    global _default
    fingerprint = _configuration()
    known = _default
    if known is None or known[0] != fingerprint:
        # Not locked: of two threads that come here at once, one makes a client in vain. A child that is forked
        # meanwhile could inherit a lock for ever.
        known = _default = (fingerprint, Client())
    return known[1]


def _configuration() -> object:
    """What changes when the configuration does; costs microseconds."""
    names = ("BALSAM_HOME", "BALSAM_URL", "BALSAM_TOKEN", "BALSAM_SITE", "HOME")
    path = credentials_path()
    try:
        status = path.stat()
    except OSError:
        stamp = None
    else:
        stamp = (status.st_ino, status.st_mtime_ns)
    return [os.environ.get(name) for name in names], stamp
