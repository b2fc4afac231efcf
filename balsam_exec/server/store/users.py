"""SQL of users and their tokens."""

from __future__ import annotations

from sqlalchemy import Connection, bindparam, delete, insert, or_, select, update

from balsam_exec.server.store.schema import tokens, users
from balsam_exec.server.store.types import AnyRow

_BY_HASH = select(tokens.c.id, tokens.c.user_id, tokens.c.expires).where(
    tokens.c.hash == bindparam("digest"), or_(tokens.c.expires.is_(None), tokens.c.expires > bindparam("now"))
)
_TOKEN_COLUMNS = [tokens.c[name] for name in ("id", "name", "created", "expires", "last_used")]


def user_by_name(connection: Connection, username: str) -> AnyRow | None:
    return connection.execute(select(users).where(users.c.username == username)).one_or_none()


def user(connection: Connection, user_id: int) -> AnyRow:
    return connection.execute(select(users.c.id, users.c.username).where(users.c.id == user_id)).one()


def insert_user(connection: Connection, username: str, password_hash: str | None, now: int) -> int:
    values = {"username": username, "password_hash": password_hash, "created": now}
    return int(connection.execute(insert(users).values(values).returning(users.c.id)).scalar_one())


def set_password_hash(connection: Connection, user_id: int, password_hash: str) -> None:
    connection.execute(update(users).where(users.c.id == user_id).values(password_hash=password_hash))


def living_token(connection: Connection, digest: bytes, now: int) -> AnyRow | None:
    """(id, user_id, expires)."""
    return connection.execute(_BY_HASH, {"digest": digest, "now": now}).one_or_none()


def insert_token(
    connection: Connection, user_id: int, name: str, digest: bytes, now: int, expires: int | None
) -> AnyRow:
    values = {"user_id": user_id, "name": name, "hash": digest, "created": now, "expires": expires}
    return connection.execute(insert(tokens).values(values).returning(*_TOKEN_COLUMNS)).one()


def tokens_of(connection: Connection, user_id: int) -> list[AnyRow]:
    return list(connection.execute(select(*_TOKEN_COLUMNS).where(tokens.c.user_id == user_id).order_by(tokens.c.id)))


def delete_token(connection: Connection, user_id: int, token_id: int) -> bool:
    gone = connection.execute(delete(tokens).where(tokens.c.id == token_id, tokens.c.user_id == user_id))
    return gone.rowcount == 1


def mark_used(connection: Connection, used: dict[int, int]) -> None:
    """When each token was used last."""
    statement = update(tokens).where(tokens.c.id == bindparam("token")).values(last_used=bindparam("at"))
    connection.execute(statement, [{"token": token_id, "at": at} for token_id, at in used.items()])
