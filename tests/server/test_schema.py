"""The schema: the same whether created at once or by migrations, on both databases; and its indexes are used."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, event, inspect, text
from sqlalchemy.exc import IntegrityError

from balsam_exec.model.queries import FeedQuery, JobQuery
from balsam_exec.model.sessions import AcquireRequest
from balsam_exec.server import migrations
from balsam_exec.server.migrations import HEAD, migrate, revision, upgrade
from balsam_exec.server.store import feed, jobs, leases, listing
from balsam_exec.server.store.dialect import make_engine
from balsam_exec.server.store.schema import metadata
from tests.server.world import World


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = make_engine(database_url, 2)
    yield engine
    engine.dispose()


def described(connection: Connection) -> dict[str, Any]:
    """The schema as the database tells it: on SQLite the statements, on PostgreSQL what its catalogue says."""
    if connection.dialect.name == "sqlite":
        rows = connection.execute(text("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))
        bare = {name: re.sub(r"[\s\"]+", "", sql).rpartition(")") for name, sql in rows}
        internal = {"alembic_version", "sqlite_sequence"}
        # The order of constraints within a table has no meaning.
        return {
            name: (sorted(sql[0].split(",CONSTRAINT")), sql[2]) for name, sql in bare.items() if name not in internal
        }
    columns = connection.execute(
        text(
            "SELECT table_name, column_name, data_type, is_nullable, column_default FROM information_schema.columns "
            "WHERE table_schema = 'public' ORDER BY 1, 2"
        )
    )
    constraints = connection.execute(
        text("SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'public'::regnamespace")
    )
    indexes = connection.execute(text("SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"))
    return {
        "columns": [tuple(row) for row in columns if row[0] != "alembic_version"],
        "constraints": {row[0]: row[1] for row in constraints if "alembic" not in row[0]},
        "indexes": {row[0]: row[1] for row in indexes if "alembic" not in row[0]},
    }


def test_migrations_give_the_schema_of_the_code(engine: Engine) -> None:
    upgrade(engine)
    with engine.begin() as connection:
        migrated = described(connection)
        assert revision(connection) == HEAD
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    downgrade(engine)
    with engine.begin() as connection:
        assert set(inspect(connection).get_table_names()) <= {"alembic_version", "sqlite_sequence"}
        metadata.create_all(connection)
        assert described(connection) == migrated


def downgrade(engine: Engine, target: str = "base") -> None:
    config = Config()
    config.set_main_option("script_location", str(migrations.__path__[0]))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, target)


def test_the_newest_revision_is_the_one_that_is_looked_for() -> None:
    assert ScriptDirectory(str(migrations.__path__[0])).get_heads() == [HEAD]


def test_many_may_migrate_at_once(database_url: str, engine: Engine) -> None:
    problems: list[BaseException] = []

    def work() -> None:
        try:
            migrate(database_url)
        except BaseException as error:
            problems.append(error)
            raise

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert problems == []
    with engine.begin() as connection:
        assert revision(connection) == HEAD


@pytest.mark.parametrize(
    "change",
    [
        "state = 'DANCING'",
        "state = 'CREATED'",
        "state = 'RUNNING'",
        "pending_parents = -1",
        "session_id = 4711",
        "app_id = 4711",
    ],
)
def test_the_database_refuses_what_cannot_be(world: World, change: str) -> None:
    world.create()
    with pytest.raises(IntegrityError), world.database.engine.begin() as connection:
        connection.execute(text(f"UPDATE jobs SET {change}"))


def test_a_finished_job_has_no_lease(world: World) -> None:
    world.started(world.spec())
    with pytest.raises(IntegrityError), world.database.engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET state = 'JOB_FINISHED'"))


def plans(world: World, use_case: Any, *args: Any) -> str:
    """How the database executes what a use case really asks it, once there is enough that indexes matter."""
    asked: list[tuple[str, Any]] = []

    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        asked.append((statement, parameters))

    sqlite = world.database.kind == "sqlite"
    with world.database.engine.connect() as connection:
        if not sqlite:  # it reads and sorts small tables as a whole, whatever the indexes
            connection.execute(text("SET LOCAL enable_seqscan = off"))
            connection.execute(text("SET LOCAL enable_sort = off"))
            connection.execute(text("SET LOCAL enable_bitmapscan = off"))
        if sqlite:  # which is not always asked by way of SQLAlchemy
            driver: Any = connection.connection.driver_connection
            driver.set_trace_callback(lambda statement: asked.append((statement, ())))
            use_case(connection, *args)
            driver.set_trace_callback(None)
        else:
            event.listen(connection, "before_cursor_execute", note)
            use_case(connection, *args)
            event.remove(connection, "before_cursor_execute", note)
        explain = "EXPLAIN QUERY PLAN " if sqlite else "EXPLAIN "
        rows = [row for sql, given in asked for row in connection.exec_driver_sql(explain + sql, given)]
        connection.rollback()
    return "\n".join(str(row[-1]) for row in rows)


@pytest.fixture
def busy(world: World) -> World:
    world.create(*[world.spec(tags={"k": "v"})] * 20)
    world.finished(*[world.spec(tags={"k": "v"})] * 20)
    return world


@pytest.mark.parametrize(
    ("wanted", "indexes"),
    [
        ({}, {"ix_jobs_runnable"}),
        ({"max_aggregate_nodes": 1.5, "max_cores_per_node": 3, "min_packing_count": 2}, {"ix_jobs_runnable"}),
        ({"min_wait_sec": 20}, {"ix_jobs_runnable"}),
        ({"min_nodes": 2, "min_wait_sec": 20}, {"ix_jobs_wide"}),
        ({"sort_by": "long_large_first"}, {"ix_jobs_long", "ix_jobs_runnable"}),
    ],
)
def test_runnable_jobs_come_from_a_partial_index(busy: World, wanted: dict[str, Any], indexes: set[str]) -> None:
    request = AcquireRequest(max_jobs=10, max_nodes=4, **wanted)
    shown = plans(busy, leases.lease, busy.site, busy.open(), request, leases.Bounds(busy.now, 10**9, 10**6))
    assert set(re.findall(r"ix_jobs_(?:runnable|wide|long)", shown)) == indexes
    assert not re.search(r"SCAN jobs|Seq Scan on jobs|TEMP B-TREE", shown), shown
    assert "Sort" not in shown


def test_a_page_of_a_tag_follows_the_index_of_tags(busy: World) -> None:
    shown = plans(busy, listing.job_page, busy.owner, JobQuery(tags=["k:v"], limit=10))
    assert re.search(r"SEARCH leading USING PRIMARY KEY|pk_job_tags", shown), shown
    assert not re.search(r"SCAN jobs|SCAN job_payloads|Seq Scan", shown), shown


def test_the_feed_starts_at_its_cursor(busy: World) -> None:
    shown = plans(busy, feed.after, busy.owner, 5, 50, FeedQuery(to_state=["JOB_FINISHED"]))
    assert "ix_events_feed" in shown or "pk_events" in shown
    assert not re.search(r"SCAN events|Seq Scan|TEMP B-TREE|Sort", shown), shown


def test_states_are_counted_without_looking_at_jobs(busy: World) -> None:
    shown = plans(busy, listing.counted_states, busy.owner, [])
    assert "job_counts" in shown
    assert not re.search(r"\bjobs\b", shown), shown


def test_jobs_are_found_by_their_ids(busy: World) -> None:
    shown = plans(busy, jobs.lock, busy.owner, [1, 2, 3])
    assert not re.search(r"SCAN jobs|Seq Scan on jobs", shown), shown
