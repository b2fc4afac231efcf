"""The live service: reachable, restartable, and told apart from one that cannot start."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from balsam_exec.model.sites import SiteSpec
from tests.support.services import LiveService


def test_a_live_service_keeps_its_address_and_data_over_a_restart(live_service: LiveService) -> None:
    created = live_service.service.create_site(SiteSpec(name="here"))
    before = live_service.pid, live_service.url
    live_service.restart()
    assert live_service.pid != before[0]
    assert live_service.url == before[1]
    assert [site.id for site in live_service.service.sites().results] == [created.id]


def test_a_service_that_cannot_start_says_why(start_service: Callable[[str], LiveService]) -> None:
    with pytest.raises(RuntimeError, match="ended at its start"):
        start_service("sqlite:////nowhere/balsam.db")
