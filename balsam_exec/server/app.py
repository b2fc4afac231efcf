"""The FastAPI application: routes, error answers, and what runs beside them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from balsam_exec._version import __version__
from balsam_exec.model.errors import BalsamError, InvalidRequest
from balsam_exec.server.auth import Authenticator
from balsam_exec.server.config import ServerSettings
from balsam_exec.server.hub import Hub
from balsam_exec.server.notifications import listen
from balsam_exec.server.reaper import Reaper
from balsam_exec.server.routes import ROUTERS, express, lane
from balsam_exec.server.routes.http import answer, described, hoist
from balsam_exec.server.service.leases import Drained
from balsam_exec.server.service.runtime import Runtime
from balsam_exec.server.store.database import Database

log = logging.getLogger(__name__)

#: How many problems of an invalid request an answer lists.
_PROBLEMS = 20


class Health(BaseModel):
    status: str
    version: str
    database: str
    max_entity: int


class ErrorAnswer(BaseModel):
    """What every refusal looks like; `error` is a code of `balsam_exec.model.errors`."""

    error: str
    message: str
    detail: dict[str, Any] = {}


def create_app(settings: ServerSettings) -> FastAPI:
    """The service over a database whose schema is up to date."""
    database = Database(settings.database_url, settings.database_threads)
    runtime = Runtime(database, Hub(), max_entity=settings.max_entity)
    authenticator = Authenticator(runtime)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        runtime.hub.start()
        tasks = [asyncio.create_task(Reaper(runtime, authenticator, settings).run())]
        if runtime.database.kind == "postgresql":
            tasks.append(asyncio.create_task(listen(runtime, authenticator)))
        try:
            yield
        finally:
            runtime.hub.close()
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            runtime.database.close()

    app = _Application(
        title="Balsam",
        version=__version__,
        lifespan=lifespan,
        responses={"4XX": {"model": ErrorAnswer}},
        docs_url="/docs",
        redoc_url=None,
    )
    app.state.settings = settings
    app.state.runtime = runtime
    app.state.drained = Drained(runtime.hub)
    app.state.authenticator = authenticator
    for router in ROUTERS:
        app.include_router(router)

    @app.get("/health", tags=["health"], **described(Health))
    async def health() -> Response:
        """Whether the service and its database answer."""
        kind = await runtime.read(lambda _connection: runtime.database.kind)
        found = Health(status="ok", version=__version__, database=kind, max_entity=settings.max_entity)
        return answer(found.model_dump())

    _handle_errors(app)
    return app


class _Application(FastAPI):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self
        if scope["type"] == "websocket" and scope["path"] == lane.PATH:
            await lane.serve(scope, receive, send, _respond)
        elif (serve := express.find(scope)) is not None:
            response = await _respond(serve, Request(scope, receive))
            await response(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            document = super().openapi()
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            found: dict[str, Any] = {}
            hoist(document, found)
            hoist(found, found)
            for name, schema in found.items():
                schemas.setdefault(name, schema)
        assert self.openapi_schema is not None
        return self.openapi_schema


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(BalsamError)
    @app.exception_handler(ValidationError)
    @app.exception_handler(Exception)
    async def refused(request: Request, error: Exception) -> Response:
        return _refusal(request, error)

    @app.exception_handler(RequestValidationError)
    async def invalid_path_or_header(_request: Request, error: RequestValidationError) -> Response:
        return _invalid(error.errors())

    @app.exception_handler(HTTPException)
    async def unroutable(request: Request, error: HTTPException) -> Response:
        code = "not_found" if error.status_code == 404 else InvalidRequest.code
        message = f"{request.method} {request.url.path}: {error.detail}"
        response = _error(error.status_code, code, message, {})
        response.headers.update(error.headers or {})
        return response


async def _respond(serve: express.Serve, request: Request) -> Response:
    try:
        return await serve(request)
    except Exception as error:  # noqa: BLE001 - each is answered, and a defect logged
        return _refusal(request, error)


def _refusal(request: Request, error: Exception) -> Response:
    if isinstance(error, BalsamError):
        return _error(error.status, error.code, error.message, error.detail)
    if isinstance(error, ValidationError):
        return _invalid(error.errors(include_url=False, include_context=False, include_input=False))
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _error(500, BalsamError.code, f"the service failed: {type(error).__name__} (see its log)", {})


def _invalid(problems: Any) -> Response:
    """One of pydantic's lists of problems as an answer that names each field and what is wrong with it."""
    listed = [
        {"field": ".".join(str(part) for part in problem["loc"]), "problem": problem["msg"]} for problem in problems
    ]
    first = "; ".join(
        f"{item['field']}: {item['problem']}" if item["field"] else item["problem"] for item in listed[:3]
    )
    more = f" (and {len(listed) - 3} more)" if len(listed) > 3 else ""
    return _error(InvalidRequest.status, InvalidRequest.code, first + more, {"errors": listed[:_PROBLEMS]})


def _error(status: int, code: str, message: str, detail: dict[str, Any]) -> Response:
    return answer({"error": code, "message": message, "detail": detail}, status)
