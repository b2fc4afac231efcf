"""What all routes share: reading bodies and query strings, writing answers, and describing both in OpenAPI.

Bodies are validated straight from their bytes and answers written straight to bytes: twice as fast as by way of Python
objects, and the only way in which pydantic reads bytes from base64.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Generic, TypeVar
from urllib.parse import parse_qsl

from fastapi import Header, Path, Request, Response
from pydantic import BaseModel, TypeAdapter
from pydantic_core import to_json
from starlette.requests import ClientDisconnect

from balsam_exec.model.errors import InvalidRequest, TooLarge
from balsam_exec.server.service.runtime import Runtime

T = TypeVar("T")
Q = TypeVar("Q", bound=BaseModel)

#: The idempotency key of a request, where it may have one.
MAX_KEY = 200
Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=MAX_KEY)]
#: An id in a path.
PathId = Annotated[int, Path(ge=1, le=2**63 - 1)]
COMPONENTS = "#/components/schemas/{model}"
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


def runtime(request: Request) -> Runtime:
    found: Runtime = request.app.state.runtime
    return found


async def read_bytes(request: Request) -> bytes:
    """The body. Raises TooLarge, before it has been read where its length is announced."""
    limit: int = request.app.state.settings.max_body
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise _too_large(int(announced), limit)
    parts, size, more = [], 0, True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part, more = message.get("body", b""), message.get("more_body", False)
        size += len(part)
        if size > limit:
            raise _too_large(size, limit)
        parts.append(part)
    return b"".join(parts)


def _too_large(size: int, limit: int) -> TooLarge:
    return TooLarge(
        f"the body has {size} bytes or more, the limit is {limit}: send it in several requests", size=size, limit=limit
    )


class Body(Generic[T]):
    """The body of a route, of a pydantic type."""

    def __init__(self, kind: Any) -> None:
        self._adapter: TypeAdapter[T] = TypeAdapter(kind)

    async def read(self, request: Request) -> T:
        return self.parse(await read_bytes(request))

    def parse(self, body: bytes) -> T:
        """Raises pydantic's ValidationError, or InvalidRequest for what no text column holds."""
        if b"\\u0000" in body and _NUL.search(body):
            raise InvalidRequest("a text holds a NUL character (\\u0000), which cannot be stored")
        return self._adapter.validate_json(body)

    def described(self) -> dict[str, Any]:
        schema = self._adapter.json_schema(ref_template=COMPONENTS)
        return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


class QueryString(Generic[Q]):
    """The query parameters of a route, as a pydantic model; a list takes repeated ones. Others are refused."""

    def __init__(self, model: type[Q]) -> None:
        self._model = model
        schema = model.model_json_schema(ref_template=COMPONENTS)
        self._schema = schema
        self._lists = {name for name, field in schema["properties"].items() if field.get("type") == "array"}

    def read(self, request: Request) -> Q:
        """Raises pydantic's ValidationError, InvalidRequest."""
        values: dict[str, Any] = {}
        raw = request.scope["query_string"].decode("latin-1")
        for name, value in parse_qsl(raw, keep_blank_values=True, max_num_fields=20_000):
            if "\0" in value:
                raise InvalidRequest(f"{name}: a text holds a NUL character")
            if name in self._lists:
                values.setdefault(name, []).append(value)
            elif name in values:
                raise InvalidRequest(f"{name}: given twice")
            else:
                values[name] = value
        return self._model.model_validate(values)

    def described(self) -> dict[str, Any]:
        """OpenAPI's list of parameters; definitions they share come with the first, for `hoist` to move."""
        definitions = self._schema.get("$defs", {})
        parameters = [
            {"name": name, "in": "query", "required": name in self._schema.get("required", ()), "schema": dict(field)}
            for name, field in self._schema["properties"].items()
        ]
        if definitions and parameters:
            parameters[0]["schema"]["$defs"] = definitions
        return {"parameters": parameters}


def hoist(node: Any, components: dict[str, Any]) -> None:
    """Move every "$defs" of a document to its components, where the references point."""
    if isinstance(node, dict):
        components.update(node.pop("$defs", {}))
        for value in list(node.values()):
            hoist(value, components)
    elif isinstance(node, list):
        for value in node:
            hoist(value, components)


def described(
    answer: Any, status: int = 200, body: Body[Any] | None = None, query: QueryString[Any] | None = None
) -> dict[str, Any]:
    """Options of a route's decorator: what it takes and what it answers."""
    extra: dict[str, Any] = {}
    if body is not None:
        extra |= body.described()
    if query is not None:
        extra |= query.described()
    return {
        "status_code": status,
        "response_model": None,
        "openapi_extra": extra,
        "responses": {status: {"model": answer}} if answer is not None else {},
    }


def answer(value: Any, status: int = 200) -> Response:
    """JSON of plain values: dicts, lists, datetimes, bytes (as URL-safe base64)."""
    return raw(to_json(value, bytes_mode="base64"), status)


def raw(body: bytes, status: int = 200) -> Response:
    return Response(body, status, media_type="application/json")


def empty() -> Response:
    return Response(status_code=204)
