from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.server.http import Http
from tests.server.world import World
from tests.support.postgres import PostgresServer
from tests.support.services import LiveService
from tests.support.warm import Template


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    """The service's use cases on each kind of database in turn; the invariants are looked at afterwards."""
    world = World(database_url)
    yield world
    world.check_invariants()
    world.close()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def live(
    request: pytest.FixtureRequest, template: Template, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveService]:
    """A real service for all tests of a module, on each kind of database in turn."""
    directory = tmp_path_factory.mktemp("live")
    with ExitStack() as stack:
        if request.param == "sqlite":
            url = f"sqlite:///{directory / 'balsam.db'}"
        else:
            postgres: PostgresServer = request.getfixturevalue("postgres")
            url = stack.enter_context(postgres.database())
        yield stack.enter_context(LiveService(url, directory, template=template))


@pytest.fixture
def http(live: LiveService) -> Http:
    return Http(live)
