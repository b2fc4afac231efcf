from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.world import World


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    """The service's use cases on each kind of database in turn; the invariants are looked at afterwards."""
    world = World(database_url)
    yield world
    world.check_invariants()
    world.close()
