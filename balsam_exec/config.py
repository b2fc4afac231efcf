"""The configuration as apps and hooks look it up (seed 001 "Technical Details")."""

from __future__ import annotations

from functools import cached_property

from balsam_exec.api.binding import Client


class SiteConfig:
    """What code that runs at a site knows of it; elsewhere the configured service and its default site.

        client = SiteConfig().client
        Job = client.Job  # used like balsam_exec.api.Job

    Raises ConfigurationError when no service is configured.
    """

    def __init__(self) -> None:
        self.client = Client()

    @cached_property
    def site_id(self) -> int:
        """The id of the site. Raises InvalidRequest where there is no saying which it is."""
        return self.client.site_id()
