"""A real PostgreSQL for tests and benchmarks: a child of this process on a Unix socket, gone with it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Self

import psycopg

from tests.support.processes import wait_until

USER = "balsam"
#: Tests want speed, not durability; and room for many clients at once.
SETTINGS = (
    "fsync=off",
    "synchronous_commit=off",
    "full_page_writes=off",
    "max_connections=200",
    "shared_buffers=128MB",
)


class PostgresMissing(RuntimeError):
    """The binaries are not installed. Tests fail with this message; they are never skipped for it."""


def find_binaries() -> Path:
    """The directory of `initdb` and `postgres`: Debian's, `pg_config`'s, or on the PATH."""
    candidates = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name), reverse=True)
    if config := shutil.which("pg_config"):
        shown = subprocess.run([config, "--bindir"], capture_output=True, text=True, check=True)
        candidates.append(Path(shown.stdout.strip()))
    if postgres := shutil.which("postgres"):
        candidates.append(Path(postgres).resolve().parent)
    for bindir in candidates:
        if (bindir / "initdb").exists() and (bindir / "postgres").exists():
            return bindir
    raise PostgresMissing("PostgreSQL is not installed: run `apt-get install -y postgresql` (version 13 or newer)")


def _as_ordinary_user(directory: Path) -> list[str]:
    """The command prefix under which PostgreSQL, which refuses root, runs: none, a user namespace, or nobody."""
    if os.geteuid() != 0:
        return []
    namespace = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]
    if subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode == 0:
        return namespace
    shutil.chown(directory, "nobody", "nogroup")
    return ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]


class PostgresServer:
    """One cluster in a temporary directory. `create` makes databases in it; leaving the context removes it all."""

    def __init__(self, settings: tuple[str, ...] = SETTINGS) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="pg-"))  # short: a socket's path has at most 107 bytes
        self._names = (f"test_{os.getpid()}_{n}" for n in count(1))
        prefix = _as_ordinary_user(self.directory)
        bindir, data = find_binaries(), self.directory / "data"
        initdb = [
            bindir / "initdb",
            "-D",
            data,
            "-U",
            USER,
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
        ]
        subprocess.run([*prefix, *initdb], check=True, stdout=subprocess.DEVNULL)
        options = [word for setting in settings for word in ("-c", setting)]
        server = [bindir / "postgres", "-D", data, "-k", self.directory, "-h", "", *options]
        self._log = self.directory / "log"
        with self._log.open("wb") as log:
            # --pdeathsig: it also ends when pytest itself is killed.
            self._process = subprocess.Popen(
                [*prefix, "setpriv", "--pdeathsig", "INT", *server], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_until(self._answers, 20, "PostgreSQL to accept connections")

    def _answers(self) -> bool:
        if self._process.poll() is not None:
            raise RuntimeError(f"PostgreSQL ended while starting:\n{self._log.read_text()}")
        try:
            psycopg.connect(host=str(self.directory), user=USER, dbname="postgres").close()
        except psycopg.OperationalError:
            return False
        return True

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://{USER}@/{database}?host={self.directory}"

    def execute(self, statement: str) -> None:
        with psycopg.connect(host=str(self.directory), user=USER, dbname="postgres", autocommit=True) as connection:
            connection.execute(statement.encode())

    @contextmanager
    def database(self, template: str = "template0") -> Iterator[str]:
        """The URL of a fresh database, dropped afterwards whoever is still connected."""
        name = next(self._names)
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            yield self.url(name)
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def stop(self) -> None:
        self._process.send_signal(signal.SIGINT)  # a fast shutdown
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGQUIT)  # without a checkpoint
            self._process.wait(timeout=20)
        shutil.rmtree(self.directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
