"""The health of each part, as `balsam status` tells it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from balsam_exec.embedded import Deployment
from balsam_exec.embedded.status import Status, status
from balsam_exec.model.sites import SiteSpec
from tests.embedded.conftest import allocation, kill, process_of


def health(found: Status) -> dict[str, bool]:
    return {part.name: part.ok for part in found.parts}


def test_healthy(home: Path) -> None:
    deployment = Deployment.start(home)
    found = status(home)
    assert health(found) == {"supervisor": True, "service": True, "agent": True}
    assert found.healthy
    assert found.url == deployment.url
    details = " ".join(part.detail for part in found.parts)
    assert "sqlite:///" in details
    assert "last heard 0 s ago" in details or "last heard 1 s ago" in details
    assert (found.allocations, found.jobs) == ({}, {})
    allocation(deployment)
    assert status(home).allocations == {"running": 1}


def test_another_sites_agent_is_not_this_deployments(home: Path) -> None:
    deployment = Deployment.start(home)
    service = deployment.service()
    service.create_site(SiteSpec(name="another"))
    service.close()
    assert status(home).healthy


@pytest.mark.parametrize("part", ["service", "agent"])
def test_a_part_that_hangs_or_dies(home: Path, part: str) -> None:
    """Stopped, so that the supervisor does not replace it."""
    Deployment.start(home)
    process_of(home, "supervisor").send(signal.SIGSTOP)
    try:
        kill(home, part)
        found = status(home)
    finally:
        process_of(home, "supervisor").send(signal.SIGCONT)
    assert not found.healthy
    assert health(found)[part] is False


def test_killed_supervisor(home: Path) -> None:
    Deployment.start(home)
    kill(home, "supervisor")
    found = status(home)
    assert not found.healthy
    assert "balsam up" in found.parts[0].detail


def test_nothing_configured(balsam_home: Path) -> None:
    found = status(balsam_home)
    assert not found.healthy
    assert found.url is None
    assert "balsam up" in found.parts[0].detail
