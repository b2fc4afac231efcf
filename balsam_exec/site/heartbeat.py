"""Keeps the agent's lease of its site, and tells the service how the agent's parts get on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from balsam_exec.client.service import Service
from balsam_exec.model.errors import BalsamError, Conflict, NotFound, ServiceUnavailable
from balsam_exec.model.sites import AGENT_TTL, PartStatus
from balsam_exec.site.lease import Lease
from balsam_exec.site.part import Part

log = logging.getLogger(__name__)

#: Seconds between two signs of life; and the least between two when a part gets into trouble or out of it.
INTERVAL, LEAST = AGENT_TTL / 3, 1.0


class Heartbeat(Part):
    """Beats at once where `wake` is called. When the lease is another agent's, `on_lost` is called, once."""

    name = "heartbeat"

    def __init__(
        self,
        service: Service,
        site_id: int,
        lease: Lease,
        parts: Callable[[], list[PartStatus]],
        on_lost: Callable[[BalsamError], None],
    ) -> None:
        super().__init__()
        self._service = service
        self._site_id = site_id
        self._lease = lease
        self._parts = parts
        self._on_lost = on_lost
        self._wake = threading.Event()

    def run(self) -> None:
        while not self.stopped:
            self._wake.clear()
            self._beat()
            if self._wake.wait(INTERVAL):
                self.wait(LEAST)

    def stop(self) -> None:
        super().stop()
        self._wake.set()

    def wake(self) -> None:
        self._wake.set()

    def _beat(self) -> None:
        try:
            self._lease.renew(self._service, self._site_id, self._parts())
        except ServiceUnavailable as error:
            if not self.stopped:
                log.warning("%s", error)
                self.trouble(error, INTERVAL)
        except (Conflict, NotFound) as error:
            self.stop()
            self._on_lost(error)
        else:
            self.progress("told the service that the agent is alive")
