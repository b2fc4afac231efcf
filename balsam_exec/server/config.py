"""The service's settings: options of the command line, or BALSAM_SERVER_... in the environment."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from balsam_exec.model.base import MAX_BODY, MAX_ENTITY, MAX_ENTITY_LIMIT, MIN_ENTITY_LIMIT

#: Bytes of a request beside its only entity.
_AROUND = 10_000


class ServerSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="BALSAM_SERVER_", extra="forbid", frozen=True)

    database_url: str  #: sqlite:///path or postgresql://...
    #: Seconds between two looks of the reaper, unless a session expires sooner.
    reaper_period: float = Field(default=5.0, gt=0)
    #: The largest request body, in bytes.
    max_body: int = Field(default=MAX_BODY, ge=1024)
    #: The largest serialized entity (an app, the arguments, parameters or data of a job, its result), in bytes.
    max_entity: int = Field(default=MAX_ENTITY, ge=MIN_ENTITY_LIMIT, le=MAX_ENTITY_LIMIT)
    #: Seconds that a new token is valid, where its maker does not say.
    token_lifetime: int = Field(default=90 * 86400, ge=1)
    #: Seconds that an idempotency key is remembered.
    key_lifetime: int = Field(default=7 * 86400, ge=60)
    #: Threads, and connections, to a PostgreSQL database.
    database_threads: int = Field(default=8, ge=1, le=100)

    @model_validator(mode="after")
    def _entities_fit(self) -> Self:
        least = self.max_entity * 4 // 3 + _AROUND  # as base64, in JSON
        if self.max_body < least:
            raise ValueError(f"max_body, {self.max_body}, has no room for an entity: set it to {least} or more")
        return self
