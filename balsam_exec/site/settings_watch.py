"""Has the agent take over settings that have changed."""

from __future__ import annotations

from collections.abc import Callable

from balsam_exec.client.feed import Follower, follow
from balsam_exec.client.service import Service
from balsam_exec.model.events import Kind
from balsam_exec.site.part import Part


class SettingsWatch(Part):
    """Woken by the change feed, as by `balsam site sync`. With settings that are wrong the agent goes on as it was, and
    this part says what is wrong and looks again."""

    name = "settings"

    def __init__(self, service: Service, site_id: int, reload: Callable[[], str]) -> None:
        """`reload` takes them over and says what it did."""
        super().__init__()
        self._service = service
        self._site_id = site_id
        self._reload = reload
        self._feed: Follower | None = None

    def run(self) -> None:
        with follow(self._service, kind=[Kind.SITE], site_id=[self._site_id]) as self._feed:
            if self.stopped:  # before there was a feed to stop
                return
            self.progress(self._reload())  # what changed while nobody looked
            for _ in self._feed.batches():
                self.progress(self._reload())

    def stop(self) -> None:
        super().stop()
        if self._feed is not None:
            self._feed.stop()
