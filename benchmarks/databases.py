"""The databases of the benchmarks: SQLite in a file, and a PostgreSQL that keeps what it says it keeps."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from balsam_exec.model.apps import AppSpec
from balsam_exec.model.sites import SiteSpec
from tests.support.postgres import PostgresServer
from tests.support.services import LiveService


@contextmanager
def services() -> Iterator[dict[str, LiveService]]:
    """A service on each kind of database; PostgreSQL with its durable defaults, unlike in the tests."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        postgres = stack.enter_context(PostgresServer(settings=("max_connections=200",)))
        urls = {"SQLite": f"sqlite:///{directory}/balsam.db", "PostgreSQL": stack.enter_context(postgres.database())}
        found = {}
        for name, url in urls.items():
            home = directory / name
            home.mkdir()
            found[name] = stack.enter_context(LiveService(url, home))
        yield found


def make_app(live: LiveService) -> tuple[int, int]:
    """A site and a command app without parameters: their ids."""
    site = live.service.create_site(SiteSpec(name="bench"))
    app = live.service.put_app(AppSpec(site_id=site.id, name="Nothing", command_template="true"))
    return site.id, app.id
