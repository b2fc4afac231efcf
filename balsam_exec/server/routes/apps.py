"""/apps"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from balsam_exec.model.apps import AppPatch, AppRecord, AppSpec
from balsam_exec.model.base import Page
from balsam_exec.model.queries import AppQuery, Query
from balsam_exec.server.auth import User
from balsam_exec.server.routes.http import Body, PathId, QueryString, answer, described, empty, runtime
from balsam_exec.server.service import apps

router = APIRouter(prefix="/apps", tags=["apps"])

QUERY = QueryString[Query](AppQuery)
SPEC = Body[AppSpec](AppSpec)
PATCH = Body[AppPatch](AppPatch)


@router.get("", **described(Page[AppRecord], query=QUERY))
async def list_apps(request: Request, user: User) -> Response:
    return answer(await runtime(request).read(apps.apps, user, QUERY.read(request)))


@router.post("", **described(AppRecord, 201, SPEC))
async def create_app(request: Request, user: User) -> Response:
    return answer(await runtime(request).write(apps.create_app, user, await SPEC.read(request)), 201)


@router.put("", **described(AppRecord, body=SPEC))
async def put_app(request: Request, user: User) -> Response:
    """Create the app, or replace the one of that site and name."""
    return answer(await runtime(request).write(apps.put_app, user, await SPEC.read(request)))


@router.get("/{app_id}", **described(AppRecord))
async def read_app(request: Request, app_id: PathId, user: User) -> Response:
    return answer(await runtime(request).read(apps.app, user, app_id))


@router.patch("/{app_id}", **described(AppRecord, body=PATCH))
async def rename_app(request: Request, app_id: PathId, user: User) -> Response:
    return answer(await runtime(request).write(apps.rename_app, user, app_id, await PATCH.read(request)))


@router.delete("/{app_id}", **described(None, 204))
async def delete_app(request: Request, app_id: PathId, user: User) -> Response:
    """Refused while it has jobs."""
    await runtime(request).write(apps.delete_app, user, app_id)
    return empty()
