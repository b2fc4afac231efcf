"""Hooks: what jobs wait for at their sites; asked and answered by the agents."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from balsam_exec.model.hooks import HookQuery, HookReports, HooksRecorded, HookWork
from balsam_exec.server.auth import User
from balsam_exec.server.routes.http import Body, PathId, answer, described, runtime
from balsam_exec.server.routes.waiting import until_found
from balsam_exec.server.service import hooks
from balsam_exec.server.service.unit import hooks_at

router = APIRouter(prefix="/sites/{site_id}/hooks", tags=["hooks"])

QUERY = Body[HookQuery](HookQuery)
REPORTS = Body[HookReports](HookReports)


@router.post("/work", **described(HookWork, body=QUERY))
async def find_work(request: Request, site_id: PathId, user: User) -> Response:
    """Jobs that wait for a hook or for files of their parents; waits up to `timeout` seconds for the first that is not
    `known`, for a known visit to be over, or for another version of one of the `apps`."""
    query = await QUERY.read(request)
    app = runtime(request)
    found = await until_found(
        app.hub,
        query.timeout,
        lambda: app.read(hooks.work, user, site_id, query),
        found=hooks.has_news,
        topics=lambda _: [hooks_at(site_id)],
    )
    return answer(found)


@router.post("/reports", **described(HooksRecorded, body=REPORTS))
async def report(request: Request, site_id: PathId, user: User) -> Response:
    """What came of visits. All of it is recorded but for visits that are over, or nothing; again it does no harm."""
    batch = await REPORTS.read(request)
    return answer(await runtime(request).write(hooks.record, user, site_id, batch.reports))
