"""Users, passwords and tokens."""

from __future__ import annotations

import hashlib
import secrets
from functools import cache
from typing import Any

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError

from balsam_exec.model.errors import Conflict, NotAuthenticated, NotFound
from balsam_exec.server.service.unit import TOKENS, Unit
from balsam_exec.server.store import users as store
from balsam_exec.server.store.database import Connection

_SECOND = 1_000_000
hasher = PasswordHasher()


@cache
def _nobodys_hash() -> str:
    """Verified for unknown names, so that an answer takes as long for them as for known ones."""
    return hasher.hash(secrets.token_hex())


def digest_of(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def create_user(unit: Unit, username: str, password: str | None) -> int:
    """The new user's id; without a password nobody can log in as it. Raises Conflict when the name is taken."""
    if store.user_by_name(unit.connection, username) is not None:
        raise Conflict(f"there is a user {username} already")
    return store.insert_user(unit.connection, username, None if password is None else hasher.hash(password), unit.now)


def set_password(unit: Unit, username: str, password: str) -> None:
    """Raises NotFound. Tokens stay valid: revoke them if they are to end."""
    user = store.user_by_name(unit.connection, username)
    if user is None:
        raise NotFound(f"there is no user {username}")
    store.set_password_hash(unit.connection, user.id, hasher.hash(password))


def check_password(connection: Connection, username: str, password: str) -> int:
    """The user's id. Raises NotAuthenticated, and takes as long to say so whichever of the two is wrong."""
    user = store.user_by_name(connection, username)
    stored = None if user is None else user.password_hash
    try:
        hasher.verify(stored or _nobodys_hash(), password)
    except VerifyMismatchError:
        stored = None
    if user is None or stored is None:
        raise NotAuthenticated("unknown user or wrong password")
    return int(user.id)


def create_token(unit: Unit, user_id: int, name: str, lifetime_sec: int | None) -> dict[str, Any]:
    """A NewToken: the only time that its text is shown."""
    token = "bt_" + secrets.token_urlsafe(32)
    expires = None if lifetime_sec is None else unit.now + lifetime_sec * _SECOND
    row = store.insert_token(unit.connection, user_id, name, digest_of(token), unit.now, expires)
    return {**row._mapping, "token": token}


def revoke_token(unit: Unit, user_id: int, token_id: int) -> None:
    if not store.delete_token(unit.connection, user_id, token_id):
        raise NotFound(f"there is no token {token_id}")
    unit.topics.add(TOKENS)


def tokens(connection: Connection, user_id: int) -> list[dict[str, Any]]:
    return [dict(row._mapping) for row in store.tokens_of(connection, user_id)]


def user(connection: Connection, user_id: int) -> dict[str, Any]:
    return dict(store.user(connection, user_id)._mapping)


def local_token(unit: Unit, username: str, present: str | None) -> str:
    """The token of the one user of an embedded service: `present` if it is valid, else a new one that never expires."""
    user = store.user_by_name(unit.connection, username)
    user_id = create_user(unit, username, None) if user is None else user.id
    if present is not None and store.living_token(unit.connection, digest_of(present), unit.now) is not None:
        return present
    return str(create_token(unit, user_id, "embedded", None)["token"])
