"""A file to stage in or out for a job (seed 001 "Transfer Slots")."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field

from balsam_exec.model.base import Id, Json, Record, Wire


class TransferState(StrEnum):
    AWAITING_JOB = "awaiting_job"  #: a stage-out whose job has not run yet
    PENDING = "pending"
    ACTIVE = "active"
    DONE = "done"
    FAILED = "failed"


class TransferPatch(Wire):
    state: TransferState | None = None
    task_id: str | None = Field(default=None, max_length=200)
    transfer_info: Json | None = None


class TransferBulkPatch(TransferPatch):
    id: Id


class TransferRecord(Record):
    id: Id
    job_id: Id
    site_id: Id
    slot: str
    direction: Literal["in", "out"]
    location: str  #: alias in the site's transfer_locations
    remote_path: str
    local_path: str
    recursive: bool
    state: TransferState
    task_id: str | None = None
    transfer_info: Json = {}
