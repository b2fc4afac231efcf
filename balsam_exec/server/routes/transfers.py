"""/transfers"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import Field

from balsam_exec.model.base import MAX_BULK, Count, Page
from balsam_exec.model.queries import Query, TransferQuery
from balsam_exec.model.transfers import TransferBulkPatch, TransferPatch, TransferRecord
from balsam_exec.server.auth import User
from balsam_exec.server.routes.http import Body, PathId, QueryString, answer, described, runtime
from balsam_exec.server.service import transfers

router = APIRouter(prefix="/transfers", tags=["transfers"])

QUERY = QueryString[Query](TransferQuery)
PATCH = Body[TransferPatch](TransferPatch)
PATCHES = Body[list[TransferBulkPatch]](Annotated[list[TransferBulkPatch], Field(max_length=MAX_BULK)])


@router.get("", **described(Page[TransferRecord], query=QUERY))
async def list_transfers(request: Request, user: User) -> Response:
    return answer(await runtime(request).read(transfers.transfers, user, QUERY.read(request)))


@router.patch("/bulk", **described(Count, body=PATCHES))
async def patch_transfers(request: Request, user: User) -> Response:
    """Each transfer its own patch; all of them, or none. A job whose transfers are all done goes on."""
    patches = await PATCHES.read(request)
    return answer({"count": await runtime(request).write(transfers.patch_transfers, user, patches)})


@router.get("/{transfer_id}", **described(TransferRecord))
async def read_transfer(request: Request, transfer_id: PathId, user: User) -> Response:
    return answer(await runtime(request).read(transfers.transfer, user, transfer_id))


@router.patch("/{transfer_id}", **described(TransferRecord, body=PATCH))
async def patch_transfer(request: Request, transfer_id: PathId, user: User) -> Response:
    patch = await PATCH.read(request)
    return answer(await runtime(request).write(transfers.patch_transfer, user, transfer_id, patch))
