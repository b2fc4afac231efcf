"""What the service knows that may keep a job where it is. `service.explain` gathers it, `service.reasons` judges it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from balsam_exec.model.base import Json
from balsam_exec.model.states import JobState, OnParentFailure, Step
from balsam_exec.server.service.places import Demand, Place


@dataclass(frozen=True, slots=True)
class Happened:
    """One event of the job."""

    source: str
    target: str
    at: datetime
    data: Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Of the launcher that holds the job."""

    batch_job_id: int | None
    heard: datetime  #: when its launcher was last heard of
    expires: datetime
    kill_ordered: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What may keep a job where it is. What has no bearing on its state need not be there."""

    now: datetime
    job_id: int
    state: JobState
    steps: Step = Step.NONE
    demand: Demand
    app: str = "app"
    site: str = "site"
    agent_heard: datetime | None = None
    changed: datetime | None = None  #: the job, at last
    batch_job_id: int | None = None  #: that ran it last
    return_code: int | None = None
    lease: Lease | None = None
    on_parent_failure: OnParentFailure = OnParentFailure.FAIL
    parents: Mapping[JobState, int] = field(default_factory=dict)  #: how many are in each state
    waiting_for: Sequence[tuple[int, JobState]] = ()  #: some parents, those that failed first
    transfers: Sequence[tuple[int, str, str]] = ()  #: (id, state, error) of those that are not done
    queue: int = 0  #: of the site's jobs, how many are in this state
    places: Sequence[Place] = ()  #: with a launcher
    starting: Sequence[Place] = ()  #: running, but without a launcher
    queued: Sequence[Place] = ()
    unsubmitted: int = 0  #: of the queued, those that the agent has yet to submit
    ahead: int = 0  #: runnable jobs of the site that go before it
    history: Sequence[Happened] = ()  #: the latest events, the last one first

    def last(self, target: JobState) -> Happened | None:
        """When it last came to that state."""
        return next((one for one in self.history if one.target == target), None)
