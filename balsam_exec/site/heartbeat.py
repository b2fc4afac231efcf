"""Tells the service that the site's agent is alive."""

from __future__ import annotations

import logging

from balsam_exec.client.service import Service
from balsam_exec.model.errors import ServiceUnavailable
from balsam_exec.model.sites import SitePatch
from balsam_exec.site.part import Part

log = logging.getLogger(__name__)

#: Seconds between two signs of life.
INTERVAL = 20.0


class Heartbeat(Part):
    name = "heartbeat"

    def __init__(self, service: Service, site_id: int) -> None:
        super().__init__()
        self._service = service
        self._site_id = site_id

    def run(self) -> None:
        while not self.wait(INTERVAL):
            try:
                self._service.patch_site(self._site_id, SitePatch(refresh=True))
            except ServiceUnavailable as error:
                log.warning("%s", error)
