"""The fixtures themselves: databases are fresh and real, and processes that are left behind are found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy

from tests.support.postgres import PostgresMissing, PostgresServer, find_binaries
from tests.support.processes import MARKER, marked_processes, reap_leftovers, wait_until


@pytest.mark.parametrize("again", [1, 2])
def test_each_test_has_an_empty_database(database_url: str, again: int) -> None:
    engine = sqlalchemy.create_engine(database_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE mine (id INTEGER)")  # fails if the other round's is still there
        assert sqlalchemy.inspect(connection).get_table_names() == ["mine"]
    engine.dispose()


def test_a_database_is_dropped_even_when_somebody_is_connected(postgres: PostgresServer) -> None:
    with postgres.database() as url:
        engine = sqlalchemy.create_engine(url)
        lasting = engine.connect()
    name = sqlalchemy.make_url(url).database
    again = sqlalchemy.create_engine(postgres.url("postgres"))
    with again.connect() as connection:
        names = connection.scalars(sqlalchemy.text("SELECT datname FROM pg_database")).all()
    assert name not in names
    lasting.invalidate()
    engine.dispose()
    again.dispose()


def test_missing_postgresql_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(PostgresMissing, match="apt-get install"):
        find_binaries()


def test_no_configuration_of_the_user_is_seen(balsam_home: Path) -> None:
    assert os.environ["BALSAM_HOME"] == str(balsam_home)
    assert not balsam_home.exists()


def test_a_process_left_behind_is_named_and_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MARKER, "of-this-test")
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    wait_until(lambda: bool(marked_processes("of-this-test")), 10, "the child to have its environment")
    (left,) = reap_leftovers("of-this-test", grace=0)
    assert child.wait(timeout=10) == -9
    assert left.pid == child.pid
    assert "test_a_process_left_behind" in left.test
    assert child.stdin
    child.stdin.close()


def test_a_process_that_ends_in_time_is_not_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MARKER, "of-this-test-too")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        wait_until(lambda: bool(marked_processes("of-this-test-too")), 10, "the child to have its environment")
        assert child.stdin
        child.stdin.close()
        assert reap_leftovers("of-this-test-too") == []
