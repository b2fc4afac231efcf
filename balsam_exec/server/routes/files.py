"""Files of jobs: users ask for them, the agents of their sites answer."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from balsam_exec.model.base import now
from balsam_exec.model.errors import ServiceUnavailable
from balsam_exec.model.files import FileAnswer, FileChunk, FileRequest, FileRequestQuery, ReadRequest
from balsam_exec.server.auth import User
from balsam_exec.server.routes.http import Body, PathId, QueryString, answer, described, empty, raw, runtime
from balsam_exec.server.routes.waiting import until_found
from balsam_exec.server.service import files

router = APIRouter(tags=["files"])

READ = Body[ReadRequest](ReadRequest)
ANSWER = Body[FileAnswer](FileAnswer)
QUERY = QueryString(FileRequestQuery)


@router.post("/jobs/{job_id}/read", **described(FileChunk, body=READ))
async def read_file(request: Request, job_id: PathId, user: User) -> Response:
    """A part of a file of the job's workdir, read by the agent of its site; 504 `site_unreachable` if none answers."""
    wanted = await READ.read(request)
    app = runtime(request)
    asked = await app.write(files.ask, user, job_id, wanted)
    try:
        found = await until_found(
            app.hub,
            wanted.timeout,
            lambda: app.read(files.answer_of, asked),
            found=lambda told: told is not None,
            topics=lambda _: [files.answer_to(asked.id)],
        )
    finally:
        await app.write(files.close, asked)
    if found is not None:
        return raw(files.chunk_of(found).model_dump_json().encode())
    if app.hub.closed:
        raise ServiceUnavailable("the service is being stopped: try again")
    raise await app.read(files.unreachable, user, asked, wanted.timeout, now())


@router.get("/sites/{site_id}/file-requests", **described(list[FileRequest], query=QUERY))
async def list_requests(request: Request, site_id: PathId, user: User) -> Response:
    """What the site's agent is asked to read; waits up to `timeout` seconds for the first that is not `known`."""
    query = QUERY.read(request)
    app = runtime(request)
    found = await until_found(
        app.hub,
        query.timeout,
        lambda: app.read(files.requests, user, site_id, query.known, app.clock()),
        found=bool,
        topics=lambda _: [files.requests_at(site_id)],
    )
    return answer(found)


@router.put("/file-requests/{request_id}", **described(None, 204, ANSWER))
async def give_answer(request: Request, request_id: PathId, user: User) -> Response:
    """What the agent has read, or why it could not. 404 when nobody waits for it any more."""
    await runtime(request).write(files.give_answer, user, request_id, await ANSWER.read(request))
    return empty()
