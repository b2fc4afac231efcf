"""A site: a directory on a machine where jobs run, and the agent that serves it (seed 001 "The Site Identifier")."""

from __future__ import annotations

from pydantic import Field

from balsam_exec.model.base import Id, Json, Name, Record, Timestamp, Wire


class SiteSpec(Wire):
    """A site to register; `name` is unique for its owner."""

    name: Name
    path: str = Field(default="", max_length=4000)  #: the site's directory on its machine
    hostname: str = Field(default="", max_length=255)
    allowed_queues: Json = {}  #: queue name -> its limits
    allowed_projects: list[str] = []
    optional_batch_job_params: dict[str, str] = {}
    transfer_locations: dict[str, str] = {}  #: alias -> URL that transfers may name
    globus_endpoint_id: str | None = None


class SitePatch(Wire):
    name: Name | None = None
    path: str | None = Field(default=None, max_length=4000)
    hostname: str | None = Field(default=None, max_length=255)
    allowed_queues: Json | None = None
    allowed_projects: list[str] | None = None
    optional_batch_job_params: dict[str, str] | None = None
    transfer_locations: dict[str, str] | None = None
    globus_endpoint_id: str | None = None
    #: The agent's sign of life: any value sets `last_refresh` to the service's clock.
    refresh: bool | None = None


class SiteRecord(Record, SiteSpec):
    id: Id
    created: Timestamp
    last_refresh: Timestamp | None = None  #: when its agent was last heard of
