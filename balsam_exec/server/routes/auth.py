"""/auth: users and tokens."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response

from balsam_exec.model.auth import Login, NewToken, TokenRecord, TokenSpec, UserRecord
from balsam_exec.server.auth import User
from balsam_exec.server.routes.http import Body, PathId, answer, described, empty, runtime
from balsam_exec.server.service import users

router = APIRouter(prefix="/auth", tags=["auth"])

LOGIN = Body[Login](Login)
TOKEN = Body[TokenSpec](TokenSpec)
#: Argon2 takes 64 MiB and a core for each password it checks.
_checking_passwords = asyncio.Semaphore(2)


@router.post("/login", **described(NewToken, 201, LOGIN))
async def login(request: Request) -> Response:
    """A new token for a name and a password."""
    given = await LOGIN.read(request)
    app = runtime(request)
    async with _checking_passwords:
        user_id = await app.read(users.check_password, given.username, given.password.get_secret_value())
    lifetime = request.app.state.settings.token_lifetime
    return answer(await app.write(users.create_token, user_id, given.token_name, lifetime), 201)


@router.get("/me", **described(UserRecord))
async def me(request: Request, user: User) -> Response:
    return answer(await runtime(request).read(users.user, user))


@router.get("/tokens", **described(list[TokenRecord]))
async def list_tokens(request: Request, user: User) -> Response:
    """Your tokens, without their texts, which only their makers have seen."""
    return answer(await runtime(request).read(users.tokens, user))


@router.post("/tokens", **described(NewToken, 201, TOKEN))
async def create_token(request: Request, user: User) -> Response:
    spec = await TOKEN.read(request)
    lifetime = spec.expires_in_sec or request.app.state.settings.token_lifetime
    return answer(await runtime(request).write(users.create_token, user, spec.name, lifetime), 201)


@router.delete("/tokens/{token_id}", **described(None, 204))
async def revoke_token(request: Request, token_id: PathId, user: User) -> Response:
    """Whoever uses it is refused from now on."""
    await runtime(request).write(users.revoke_token, user, token_id)
    return empty()
