"""/sites"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from balsam_exec.model.backlog import Backlog, BacklogQuery
from balsam_exec.model.base import Page
from balsam_exec.model.queries import Query, SiteQuery
from balsam_exec.model.sites import AgentBeat, SitePatch, SiteRecord, SiteSpec
from balsam_exec.server.auth import User
from balsam_exec.server.routes.http import Body, PathId, QueryString, answer, described, empty, runtime
from balsam_exec.server.service import backlog, sites

router = APIRouter(prefix="/sites", tags=["sites"])

QUERY = QueryString[Query](SiteQuery)
SPEC = Body[SiteSpec](SiteSpec)
PATCH = Body[SitePatch](SitePatch)
BEAT = Body[AgentBeat](AgentBeat)
BACKLOG = QueryString[BacklogQuery](BacklogQuery)


@router.get("", **described(Page[SiteRecord], query=QUERY))
async def list_sites(request: Request, user: User) -> Response:
    app = runtime(request)
    return answer(await app.read(sites.sites, user, QUERY.read(request), app.clock()))


@router.post("", **described(SiteRecord, 201, SPEC))
async def create_site(request: Request, user: User) -> Response:
    return answer(await runtime(request).write(sites.create_site, user, await SPEC.read(request)), 201)


@router.get("/{site_id}", **described(SiteRecord))
async def read_site(request: Request, site_id: PathId, user: User) -> Response:
    app = runtime(request)
    return answer(await app.read(sites.site, user, site_id, app.clock()))


@router.patch("/{site_id}", **described(SiteRecord, body=PATCH))
async def patch_site(request: Request, site_id: PathId, user: User) -> Response:
    return answer(await runtime(request).write(sites.patch_site, user, site_id, await PATCH.read(request)))


@router.delete("/{site_id}", **described(None, 204))
async def delete_site(request: Request, site_id: PathId, user: User) -> Response:
    """With its apps and batch jobs; refused while it has jobs."""
    await runtime(request).write(sites.delete_site, user, site_id)
    return empty()


@router.put("/{site_id}/agent", **described(SiteRecord, body=BEAT))
async def beat(request: Request, site_id: PathId, user: User) -> Response:
    """An agent's sign of life, by which it takes the lease of its site and keeps it; 409 while another one has it."""
    return answer(await runtime(request).write_brief(sites.beat, user, site_id, await BEAT.read(request)))


@router.delete("/{site_id}/agent/{holder}", **described(None, 204))
async def release(request: Request, site_id: PathId, holder: str, user: User) -> Response:
    """The agent of this name has ended, and gives the lease of its site back if it has it."""
    await runtime(request).write_brief(sites.release, user, site_id, holder)
    return empty()


@router.get("/{site_id}/backlog", **described(Backlog, query=BACKLOG))
async def read_backlog(request: Request, site_id: PathId, user: User) -> Response:
    """The site's runnable jobs and those that launchers hold, counted by what they need."""
    query, app = BACKLOG.read(request), runtime(request)
    return answer(await app.read(backlog.backlog, user, site_id, query, app.clock()))
