"""What a site has to do: its jobs counted by what they need, for whoever decides how many nodes to ask for."""

from __future__ import annotations

from pydantic import Field

from balsam_exec.model.base import Id, Record, Wire
from balsam_exec.model.jobs import Resources

#: The most groups of a backlog; what is beyond them is told of when these are done.
MAX_GROUPS = 10_000


class BacklogQuery(Wire):
    tags: list[str] = Field(default=[], max_length=100)  #: "key:value"; only runnable jobs that carry all of these


class JobGroup(Record, Resources):
    """Jobs that need the same (`launch_params` aside)."""

    count: int


class HeldGroup(JobGroup):
    """Jobs that launchers of one batch job hold: they run, or wait in a launcher."""

    batch_job_id: Id
    elapsed_sec: float  #: of those that run, how long they have been at it, all together


class Backlog(Record):
    runnable: list[JobGroup]  #: the jobs that wait for a launcher; where they are very many, estimates from a part
    held: list[HeldGroup]
