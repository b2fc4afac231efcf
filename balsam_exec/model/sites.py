"""A site: a directory on a machine where jobs run, and the agent that serves it (seed 001 "The Site Identifier")."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from balsam_exec.model.allowed import QueueLimits
from balsam_exec.model.base import Id, Name, Record, Timestamp, Wire

#: Seconds that an agent which is not heard of keeps its site.
AGENT_TTL = 60.0


class SiteSpec(Wire):
    """A site to register; `name` is unique for its owner."""

    name: Name
    path: str = Field(default="", max_length=4000)  #: the site's directory on its machine
    hostname: str = Field(default="", max_length=255)
    #: What allocations may ask for (`model.allowed`); what is empty allows anything.
    allowed_queues: dict[Name, QueueLimits] = {}
    allowed_projects: list[Name] = []
    optional_batch_job_params: dict[Name, str | None] = {}
    transfer_locations: dict[str, str] = {}  #: alias -> URL that transfers may name
    globus_endpoint_id: str | None = None


class SitePatch(Wire):
    name: Name | None = None
    path: str | None = Field(default=None, max_length=4000)
    hostname: str | None = Field(default=None, max_length=255)
    allowed_queues: dict[Name, QueueLimits] | None = None
    allowed_projects: list[Name] | None = None
    optional_batch_job_params: dict[Name, str | None] | None = None
    transfer_locations: dict[str, str] | None = None
    globus_endpoint_id: str | None = None
    #: The agent's sign of life: any value sets `last_refresh` to the service's clock.
    refresh: bool | None = None


class PartStatus(Record):
    """How one part of an agent gets on."""

    name: str = Field(max_length=100)
    state: Literal["running", "retrying"]  #: retrying: it cannot do its work now
    progress: str = Field(default="", max_length=1000)  #: what it did last
    progress_time: Timestamp | None = None
    error: str = Field(default="", max_length=1000)  #: what went wrong last, perhaps long ago
    error_time: Timestamp | None = None
    retry: Timestamp | None = None  #: when it tries again; None: when somebody has helped


class AgentProcess(Record):
    """The process that serves a site, told apart from all others."""

    hostname: str = Field(max_length=255)
    pid: int = Field(ge=1)
    start: int = Field(ge=0)  #: in clock ticks since the machine started: a pid may be used again
    machine: str = Field(max_length=200)  #: where the two mean something: one start of one machine, and its pids
    started: Timestamp


class AgentBeat(AgentProcess):
    """An agent's sign of life, by which it takes and keeps the lease of its site."""

    holder: str = Field(min_length=1, max_length=100)  #: the agent's own name, chosen at random when it starts
    ttl_sec: float = Field(default=AGENT_TTL, ge=1, le=3600)  #: unheard of for so long, it loses the site
    replaces: str | None = Field(default=None, max_length=100)  #: a holder that is known to have ended
    parts: list[PartStatus] = Field(default=[], max_length=100)


class AgentRecord(AgentProcess):
    """The agent that has the lease of a site."""

    holder: str
    expires: Timestamp
    parts: list[PartStatus] = []


class SiteRecord(Record, SiteSpec):
    id: Id
    created: Timestamp
    last_refresh: Timestamp | None = None  #: when its agent was last heard of
    agent: AgentRecord | None = None  #: None: its agent has ended, or there never was one
    active: bool = False  #: whether its agent was heard of lately
