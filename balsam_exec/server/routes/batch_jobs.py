"""/batch-jobs"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from balsam_exec.model.base import Page
from balsam_exec.model.batch_jobs import BatchJobPatch, BatchJobRecord, BatchJobSpec
from balsam_exec.model.queries import BatchJobQuery, Query
from balsam_exec.server.auth import User
from balsam_exec.server.routes.http import Body, PathId, QueryString, answer, described, empty, runtime
from balsam_exec.server.service import batch_jobs

router = APIRouter(prefix="/batch-jobs", tags=["batch-jobs"])

QUERY = QueryString[Query](BatchJobQuery)
SPEC = Body[BatchJobSpec](BatchJobSpec)
PATCH = Body[BatchJobPatch](BatchJobPatch)


@router.get("", **described(Page[BatchJobRecord], query=QUERY))
async def list_batch_jobs(request: Request, user: User) -> Response:
    return answer(await runtime(request).read(batch_jobs.batch_jobs, user, QUERY.read(request)))


@router.post("", **described(BatchJobRecord, 201, SPEC))
async def create_batch_job(request: Request, user: User) -> Response:
    """Request an allocation; the site submits it to its scheduler."""
    return answer(await runtime(request).write(batch_jobs.create_batch_job, user, await SPEC.read(request)), 201)


@router.get("/{batch_job_id}", **described(BatchJobRecord))
async def read_batch_job(request: Request, batch_job_id: PathId, user: User) -> Response:
    return answer(await runtime(request).read(batch_jobs.batch_job, user, batch_job_id))


@router.patch("/{batch_job_id}", **described(BatchJobRecord, body=PATCH))
async def patch_batch_job(request: Request, batch_job_id: PathId, user: User) -> Response:
    """One that ends takes its sessions with it: their running jobs time out, the others are free again."""
    patch = await PATCH.read(request)
    return answer(await runtime(request).write(batch_jobs.patch_batch_job, user, batch_job_id, patch))


@router.delete("/{batch_job_id}", **described(None, 204))
async def delete_batch_job(request: Request, batch_job_id: PathId, user: User) -> Response:
    """Forget one that has ended. To end one, set its state to pending_deletion."""
    await runtime(request).write(batch_jobs.delete_batch_job, user, batch_job_id)
    return empty()
