"""SQL of idempotency keys."""

from __future__ import annotations

from sqlalchemy import Connection, bindparam, delete, select, text, update

from balsam_exec.server.store.prepared import Prepared
from balsam_exec.server.store.schema import idempotency_keys as keys

_CLAIM = Prepared(
    text(
        "INSERT INTO idempotency_keys (owner_id, key, digest, created) VALUES (:owner, :key, :digest, :now) "
        "ON CONFLICT (owner_id, key) DO NOTHING"
    )
)
_ANSWER = Prepared(
    update(keys)
    .where(keys.c.owner_id == bindparam("owner"), keys.c.key == bindparam("name"))
    .values(answer=bindparam("body"))
)


def claim(connection: Connection, owner_id: int, key: str, digest: bytes, now: int) -> bool:
    """Whether the key is new. Waits for a transaction that is claiming it just now."""
    return _CLAIM.run(connection, {"owner": owner_id, "key": key, "digest": digest, "now": now}) == 1


def stored(connection: Connection, owner_id: int, key: str) -> tuple[bytes, bytes]:
    """(digest of the request, its answer)."""
    query = select(keys.c.digest, keys.c.answer).where(keys.c.owner_id == owner_id, keys.c.key == key)
    digest, answer = connection.execute(query).one()
    return bytes(digest), bytes(answer)


def answer(connection: Connection, owner_id: int, key: str, body: bytes) -> None:
    _ANSWER.run(connection, {"owner": owner_id, "name": key, "body": body})


def forget(connection: Connection, before: int) -> None:
    connection.execute(delete(keys).where(keys.c.created < before))
