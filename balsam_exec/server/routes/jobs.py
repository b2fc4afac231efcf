"""/jobs"""

from __future__ import annotations

import hashlib
from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from balsam_exec.model.base import MAX_BULK, MAX_PAGE, Count, Id, Page
from balsam_exec.model.errors import InvalidRequest
from balsam_exec.model.explain import Explanation
from balsam_exec.model.jobs import (
    Cancelled,
    CancelRequest,
    JobBulkPatch,
    JobCreated,
    JobPatch,
    JobRecord,
    JobSpec,
    Killed,
    KillRequest,
    Result,
    StateCount,
)
from balsam_exec.model.queries import JobQuery, Query
from balsam_exec.server.auth import User
from balsam_exec.server.routes.http import (
    Body,
    Key,
    PathId,
    QueryString,
    answer,
    described,
    empty,
    raw,
    read_bytes,
    runtime,
)
from balsam_exec.server.service import create, explain, feed, jobs, update

router = APIRouter(prefix="/jobs", tags=["jobs"])


class ResultQuery(BaseModel):
    """Whose results."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: list[Id] = Field(default=[], max_length=MAX_PAGE)


QUERY = QueryString[Query](JobQuery)
RESULTS = QueryString(ResultQuery)
SPECS = Body[list[JobSpec]](Annotated[list[JobSpec], Field(max_length=MAX_BULK)])
PATCH = Body[JobPatch](JobPatch)
PATCHES = Body[list[JobBulkPatch]](Annotated[list[JobBulkPatch], Field(max_length=MAX_BULK)])
CANCEL = Body[CancelRequest](CancelRequest)
KILL = Body[KillRequest](KillRequest)
#: So many jobs are stored in about a millisecond or two.
BRIEF = 16


@router.get("", **described(Page[JobRecord], query=QUERY))
async def list_jobs(request: Request, user: User) -> Response:
    return answer(await runtime(request).read(jobs.jobs, user, QUERY.read(request)))


@router.post("", **described(list[JobCreated], 201, SPECS))
async def create_jobs(request: Request, user: User, key: Key = None) -> Response:
    """Create jobs: all of them, or none. With an `Idempotency-Key` the same request creates them once."""
    body = await read_bytes(request)
    specs = SPECS.parse(body)
    digest = hashlib.sha256(body).digest() if key is not None else b""
    app = runtime(request)
    write = app.write_brief if len(specs) <= BRIEF else app.write
    return raw(await write(create.create_jobs, user, specs, key, digest), 201)


@router.patch("", **described(Count, body=PATCH, query=QUERY))
async def patch_matching(request: Request, user: User) -> Response:
    """The same patch to all jobs that match: to all of them, or to none."""
    query, patch = QUERY.read(request), await PATCH.read(request)
    return answer({"count": await runtime(request).write(update.patch_matching, user, query, patch)})


@router.delete("", **described(Count, query=QUERY))
async def delete_matching(request: Request, user: User) -> Response:
    """Delete all jobs that match at least one filter."""
    return answer({"count": await runtime(request).write(update.delete_matching, user, QUERY.read(request))})


@router.patch("/bulk", **described(Count, body=PATCHES))
async def patch_jobs(request: Request, user: User) -> Response:
    """Each job its own patch; all of them, or none."""
    patches = await PATCHES.read(request)
    return answer({"count": await runtime(request).write(update.patch_jobs, user, patches)})


@router.post("/cancel", **described(Cancelled, body=CANCEL))
async def cancel_jobs(request: Request, user: User) -> Response:
    """Those of the jobs that are still waiting become USER_KILLED."""
    wanted = await CANCEL.read(request)
    return answer({"job_ids": await runtime(request).write(update.cancel_jobs, user, wanted.ids)})


@router.post("/kill", **described(Killed, body=KILL, query=QUERY))
async def kill_jobs(request: Request, user: User) -> Response:
    """Kill the jobs that are named in the body or, without one, all that match and have not ended.

    What waits is USER_KILLED at once. What a launcher holds is so when it says that nothing of it is left.
    """
    query, body = QUERY.read(request), await read_bytes(request)
    if not body:
        return answer(await runtime(request).write(update.kill_matching, user, query))
    if query.model_fields_set:
        raise InvalidRequest("ids in the body or filters in the query string, not both")
    return answer(await runtime(request).write(update.kill_jobs, user, KILL.parse(body).ids))


@router.get("/count", **described(Count, query=QUERY))
async def count_jobs(request: Request, user: User) -> Response:
    return answer({"count": await runtime(request).read(jobs.count, user, QUERY.read(request))})


@router.get("/states", **described(list[StateCount], query=QUERY))
async def count_states(request: Request, user: User) -> Response:
    """How many jobs are in each state; from counters where there is no filter but `site_id`."""
    return answer(await runtime(request).read(jobs.states, user, QUERY.read(request)))


@router.get("/results", **described(dict[int, Result], query=RESULTS))
async def read_results(request: Request, user: User) -> Response:
    """How those of the jobs that have ended did. A very large answer leaves some for another request."""
    app = runtime(request)
    return answer(await app.read(feed.results, user, RESULTS.read(request).id, app.max_entity))


@router.get("/{job_id}", **described(JobRecord))
async def read_job(request: Request, job_id: PathId, user: User) -> Response:
    return answer(await runtime(request).read_brief(jobs.job, user, job_id))


@router.get("/{job_id}/explain", **described(Explanation))
async def explain_job(request: Request, job_id: PathId, user: User) -> Response:
    """Why the job is in its state: what it waits for, where it runs, how it ended."""
    app = runtime(request)
    return answer(await app.read(explain.explain, user, job_id, app.clock()))


@router.patch("/{job_id}", **described(JobRecord, body=PATCH))
async def patch_job(request: Request, job_id: PathId, user: User) -> Response:
    """While a launcher holds the job only its `tags`, `data` and `state` can change."""
    patch = await PATCH.read(request)
    return answer(await runtime(request).write(update.patch_job, user, job_id, patch))


@router.delete("/{job_id}", **described(None, 204))
async def delete_job(request: Request, job_id: PathId, user: User) -> Response:
    """With its result; the log of what happened to it stays."""
    await runtime(request).write(update.delete_job, user, job_id)
    return empty()
