"""Users and their tokens. A token's text is shown once, when it is made; the service keeps only its hash."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SecretStr, StringConstraints

from balsam_exec.model.base import Id, Record, Timestamp, Wire

Username = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._@+-]+$", min_length=1, max_length=150)]


class Login(Wire):
    username: Username
    password: SecretStr = Field(max_length=1000)
    token_name: str = Field(default="login", max_length=100)


class TokenSpec(Wire):
    name: str = Field(max_length=100)
    expires_in_sec: int | None = Field(default=None, ge=1, le=10 * 366 * 86400)  #: None: the service's default


class TokenRecord(Record):
    id: Id
    name: str
    created: Timestamp
    expires: Timestamp | None
    last_used: Timestamp | None = None


class NewToken(TokenRecord):
    token: str


class UserRecord(Record):
    id: Id
    username: str
