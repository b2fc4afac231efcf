"""Bringing a database to the present schema. Cheap where it is there already: Alembic is then not even imported."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text

from balsam_exec.server.store.dialect import make_engine
from balsam_exec.server.store.schema import metadata

#: The newest revision in versions/.
HEAD = "0009"


def migrate(url: str) -> None:
    """Create or upgrade the schema. Several processes may do so at once: one works, the others wait for it."""
    engine = make_engine(url, connections=1)
    try:
        with engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(4262)"))
            present = revision(connection)
            if present == HEAD:
                return
            if present is None:
                metadata.create_all(connection)
                connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"))
                connection.execute(text("INSERT INTO alembic_version VALUES (:head)"), {"head": HEAD})
                return
        upgrade(engine)
    finally:
        engine.dispose()


def revision(connection: Connection) -> str | None:
    """The revision of the schema; None for an empty database."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return None if found is None else str(found)


def upgrade(engine: Engine, target: str = "head") -> None:
    """Run the migrations in versions/, in one transaction."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, target)
