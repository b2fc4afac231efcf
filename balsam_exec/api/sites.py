"""Sites as objects."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar

from balsam_exec.api.queryset import Objects, QuerySet
from balsam_exec.api.resource import Field, Resource, Routes
from balsam_exec.client.service import Service
from balsam_exec.model.allowed import QueueLimits
from balsam_exec.model.queries import SiteQuery
from balsam_exec.model.sites import AgentRecord, SitePatch, SiteSpec


class Site(Resource):
    """A directory on a machine where jobs run (seed 001 "The Site Identifier").

    `Site.objects.get(name="theta-gpu")`, `Site.objects.create(name="laptop", path="/home/me/site")`.
    """

    __slots__ = ()
    _shown = ("id", "name", "hostname", "path")
    routes = Routes(
        query=SiteQuery,
        page=Service.sites,
        get=Service.site,
        spec=SiteSpec,
        create=Service.create_site,
        patch_model=SitePatch,
        patch=Service.patch_site,
        delete=Service.delete_site,
    )
    objects: ClassVar[Objects[QuerySet[Site]]] = Objects(QuerySet)

    id: Field[int] = Field(read_only=True)
    name: Field[str] = Field()
    path: Field[str] = Field()
    hostname: Field[str] = Field()
    allowed_queues: Field[dict[str, QueueLimits]] = Field()
    allowed_projects: Field[list[str]] = Field()
    optional_batch_job_params: Field[dict[str, str | None]] = Field()
    transfer_locations: Field[dict[str, str]] = Field()
    globus_endpoint_id: Field[str | None] = Field()
    created: Field[datetime] = Field(read_only=True)
    last_refresh: Field[datetime | None] = Field(read_only=True)
    active: Field[bool] = Field(read_only=True)
    agent: Field[AgentRecord | None] = Field(read_only=True)
