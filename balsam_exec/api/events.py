"""The log of what happened, as objects."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar

from balsam_exec.api.queryset import Objects, QuerySet
from balsam_exec.api.resource import Field, Resource, Routes
from balsam_exec.client.service import Service
from balsam_exec.model.base import Json
from balsam_exec.model.events import Kind
from balsam_exec.model.queries import EventQuery


class EventLog(Resource):
    """One transition of a job or an allocation, with its time; never changed.

    `EventLog.objects.filter(job_id=7).order_by("timestamp")`, `.filter(to_state="RUN_ERROR", tags={"run": "a"})`.
    """

    __slots__ = ()
    _shown = ("id", "kind", "subject_id", "from_state", "to_state", "timestamp", "data")
    routes = Routes(query=EventQuery, page=Service.events)
    objects: ClassVar[Objects[QuerySet[EventLog]]] = Objects(QuerySet)

    id: Field[int] = Field(read_only=True)
    kind: Field[Kind] = Field(read_only=True)
    subject_id: Field[int] = Field(read_only=True)
    site_id: Field[int | None] = Field(read_only=True)
    from_state: Field[str] = Field(read_only=True)
    to_state: Field[str] = Field(read_only=True)
    timestamp: Field[datetime] = Field(read_only=True)
    data: Field[Json] = Field(read_only=True)

    @property
    def job_id(self) -> int | None:
        """The job it is about, if it is about a job."""
        return self.subject_id if self.kind is Kind.JOB else None
