"""The files that jobs stage in and out, as objects."""

from __future__ import annotations

from typing import ClassVar, Literal

from balsam_exec.api.queryset import Objects, QuerySet
from balsam_exec.api.resource import Field, Resource, Routes
from balsam_exec.client.service import Service
from balsam_exec.model.base import Json
from balsam_exec.model.queries import TransferQuery
from balsam_exec.model.transfers import TransferPatch, TransferState


class TransferItem(Resource):
    """One file or directory of one job; made with the job, from its `transfers` (seed 001 "Transfer Slots")."""

    __slots__ = ()
    _shown = ("id", "job_id", "direction", "state", "location", "remote_path", "local_path")
    routes = Routes(
        query=TransferQuery,
        page=Service.transfers,
        get=Service.transfer,
        patch_model=TransferPatch,
        patch=Service.patch_transfer,
    )
    objects: ClassVar[Objects[QuerySet[TransferItem]]] = Objects(QuerySet)

    id: Field[int] = Field(read_only=True)
    job_id: Field[int] = Field(read_only=True)
    site_id: Field[int] = Field(read_only=True)
    slot: Field[str] = Field(read_only=True)
    direction: Field[Literal["in", "out"]] = Field(read_only=True)
    location: Field[str] = Field(read_only=True)
    remote_path: Field[str] = Field(read_only=True)
    local_path: Field[str] = Field(read_only=True)
    recursive: Field[bool] = Field(read_only=True)
    state: Field[TransferState] = Field()
    task_id: Field[str | None] = Field()
    transfer_info: Field[Json] = Field()
