from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest
from sqlalchemy import NullPool, create_engine, text

from balsam_exec.server.migrations import migrate
from balsam_exec.server.store.schema import metadata
from tests.server.http import Http
from tests.server.world import World
from tests.support.postgres import PostgresServer
from tests.support.services import LiveService
from tests.support.warm import Template


@pytest.fixture(scope="session")
def migrated(postgres: PostgresServer) -> Iterator[str]:
    """The URL of a PostgreSQL database with the schema, for the worlds of one test worker in turn."""
    with postgres.database() as url:
        migrate(url)
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """The service's use cases on each kind of database in turn; the invariants are looked at afterwards."""
    if request.param == "postgresql":
        url: str = request.getfixturevalue("migrated")
        truncate(url)
    else:
        url = request.getfixturevalue("sqlite_url")
    with closing(World(url)) as world:
        yield world
        world.check_invariants()


def truncate(url: str) -> None:
    """Make a database as it was when it was new, whoever is still connected: in a quarter of the time of a new one."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
        connection.execute(text(f"{others} AND pid <> pg_backend_pid()"))
        names = ", ".join(table.name for table in metadata.sorted_tables)
        connection.execute(text(f"TRUNCATE {names} RESTART IDENTITY"))


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
