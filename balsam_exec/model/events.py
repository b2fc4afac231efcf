"""What happened: the log of every transition, and the feed that pushes changes to whoever waits."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from balsam_exec.model.base import Id, Json, Record, Timestamp
from balsam_exec.model.jobs import Result


class Kind(StrEnum):
    """What an event is about."""

    JOB = "job"
    BATCH_JOB = "batch_job"
    APP = "app"
    SITE = "site"


class EventRecord(Record):
    """One transition. For a job, `from_state` and `to_state` are JobStates; for a batch job, BatchJobStates; an app
    or site has "" and "updated" or "deleted". A deleted job's last event goes to "deleted"."""

    id: Id
    kind: Kind
    subject_id: Id  #: the id of the job, batch job, app or site
    site_id: Id | None = None
    from_state: str
    to_state: str
    timestamp: Timestamp
    data: Json = Field(default_factory=dict)


class FeedEvent(EventRecord):
    #: With `include_results`: how the job ended, in the event that ended it.
    result: Result | None = None


class Feed(Record):
    """Events after the cursor that was asked for, oldest first, none skipped, none twice. `cursor` continues."""

    cursor: str
    events: list[FeedEvent]
