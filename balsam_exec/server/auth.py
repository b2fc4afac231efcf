"""Who is asking: bearer tokens, looked up once and remembered until one of them is revoked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPBearer

from balsam_exec.model.errors import NotAuthenticated
from balsam_exec.server.service.runtime import Runtime
from balsam_exec.server.service.unit import TOKENS
from balsam_exec.server.service.users import digest_of
from balsam_exec.server.store import users as store
from balsam_exec.server.store.database import Connection
from balsam_exec.server.store.types import micros

_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class Caller:
    user_id: int
    token_id: int
    expires: int | None  #: microseconds since 1970


class Authenticator:
    """From a token to its caller. Every revocation, in whatever server process, empties what is remembered."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._known: dict[str, Caller] = {}
        self._revocations = 0
        #: When each token was used last, since the reaper took them.
        self._used: dict[int, int] = {}
        #: Off while this process does not hear of the others' revocations.
        self.remembering = True
        runtime.hub.on(TOKENS, self.forget)

    def forget(self) -> None:
        self._known.clear()
        self._revocations += 1

    async def caller(self, token: str) -> Caller:
        """Raises NotAuthenticated."""
        found = self._known.get(token)
        if found is None:
            revocations = self._revocations
            found = await self._runtime.read(_look_up, digest_of(token), self._runtime.clock())
            if found and self.remembering and revocations == self._revocations:
                if len(self._known) >= _REMEMBERED:
                    self._known.clear()
                self._known[token] = found
        now = self._runtime.clock()
        if found is None or (found.expires is not None and found.expires <= now):
            raise NotAuthenticated("this token is unknown, expired or revoked: log in again (`balsam login`)")
        self._used[found.token_id] = now
        return found

    def take_used(self) -> dict[int, int]:
        used, self._used = self._used, {}
        return used


def _look_up(connection: Connection, digest: bytes, now: int) -> Caller | None:
    row = store.living_token(connection, digest, now)
    return None if row is None else Caller(row.user_id, row.id, None if row.expires is None else micros(row.expires))


async def user_of(request: Request) -> int:
    """The id of the user who asks. Raises NotAuthenticated."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise NotAuthenticated("send a token: `Authorization: Bearer TOKEN`")
    authenticator: Authenticator = request.app.state.authenticator
    return (await authenticator.caller(token)).user_id


class _Bearer(HTTPBearer):
    """What OpenAPI shows and what lets a caller in, in one: every further dependency costs every request."""

    async def __call__(self, request: Request) -> int:  # type: ignore[override]
        return await user_of(request)


#: In a route's signature: the id of the user who asks.
User = Annotated[int, Depends(_Bearer(description="A token from `balsam login` or `balsam token create`."))]
