"""What an administrator does at the database itself: users, and the credentials of an embedded service."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from balsam_exec.server.hub import Hub
from balsam_exec.server.migrations import migrate
from balsam_exec.server.service import users
from balsam_exec.server.service.runtime import Runtime
from balsam_exec.server.service.unit import Unit
from balsam_exec.server.store.database import Database

P = ParamSpec("P")
T = TypeVar("T")

#: The one user of an embedded service. It has no password.
LOCAL_USER = "local"


def create_user(database_url: str, username: str, password: str) -> int:
    """The id of the new user. Raises Conflict when there is one of that name."""
    return _write(database_url, users.create_user, username, password)


def set_password(database_url: str, username: str, password: str) -> None:
    """Raises NotFound."""
    _write(database_url, users.set_password, username, password)


def bootstrap(database_url: str, file: Path, url: str) -> None:
    """Make `file` hold `url` and a valid token of the local user, beside whatever else it holds; mode 0600."""
    present = _read(file)
    token = _write(database_url, users.local_token, LOCAL_USER, present.get("token"))
    if (present.get("url"), present.get("token")) != (url, token):
        _replace(file, {**present, "url": url, "token": token})


def _write(database_url: str, use_case: Callable[Concatenate[Unit, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
    migrate(database_url)
    database = Database(database_url, threads=1)
    try:
        return Runtime(database, Hub()).write_now(use_case, *args, **kwargs)
    finally:
        database.close()


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _replace(file: Path, content: dict[str, Any]) -> None:
    """In one step, readable by its owner alone (as mkstemp makes it)."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as stream:
            json.dump(content, stream, indent=2)
            stream.write("\n")
        os.replace(temporary, file)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
