"""What a site does for its jobs beside running them: hooks, and files from their parents (seed 001 "Job Lifecycle
Hooks").

A job waits for its site in one of AT_SITE. The agent asks for such jobs, does what is to be done, and says what came of
it. It holds no lease, for a site has one agent: each answer names the visit that it is about, and one that comes too
late is dropped.
"""

# No postponed annotations here: pydantic 2.9 does not find those of a NamedTuple.
from typing import NamedTuple

from pydantic import Field

from balsam_exec.model.base import MAX_BULK, MAX_PAGE, Id, Record, Wire
from balsam_exec.model.jobs import JobPatch, JobRecord
from balsam_exec.model.states import JobState

#: The hook of a job that rests in a state.
HOOK_OF = {
    JobState.STAGED_IN: "preprocess",
    JobState.RUN_DONE: "postprocess",
    JobState.RUN_ERROR: "handle_error",
    JobState.RUN_TIMEOUT: "handle_timeout",
}
#: What a site does in READY, which is no method of an app: bringing files of the parents to the workdir.
INPUT_FILES = "input_files"
#: Where a job that rests waits for its site: for a hook, or for files.
AT_SITE = frozenset({JobState.READY, *HOOK_OF})
#: The file of the workdir that holds what hooks print.
HOOK_LOG = "balsam.log"


class Visit(NamedTuple):
    """One stay of a job in a state; another run has another epoch."""

    job_id: Id
    epoch: int
    state: JobState


class HookQuery(Wire):
    """What the agent of a site asks for: jobs that wait for it and that it does not know of, and news of those that it
    has."""

    timeout: float = Field(default=0, ge=0, le=60)  #: seconds to wait for the first job or news
    limit: int = Field(default=100, ge=1, le=MAX_PAGE)
    known: list[Visit] = Field(default=[], max_length=MAX_BULK)
    apps: dict[Id, str] = Field(default={}, max_length=MAX_PAGE)  #: id -> digest: the versions that it would run


class Parent(Record):
    """Where a job's parent has its files."""

    id: Id
    site_id: Id
    workdir: str


class HookJob(Record):
    """A job that waits for its site."""

    job: JobRecord
    epoch: int
    app_digest: str  #: the app as it is now; load it again when this differs from what is cached
    parents: list[Parent] = []  #: where it waits for files of theirs

    @property
    def visit(self) -> Visit:
        return Visit(self.job.id, self.epoch, self.job.state)


class HookWork(Record):
    jobs: list[HookJob]
    over: list[Visit] = []  #: of the known ones: the job has left that state, killed perhaps
    outdated: list[Id] = []  #: of the apps: there is another version now


class HookReport(Wire):
    """What came of a visit: fields to change and, with `patch.state`, where the job goes."""

    visit: Visit
    patch: JobPatch


class HookReports(Wire):
    reports: list[HookReport] = Field(max_length=MAX_BULK)


class HooksRecorded(Record):
    late: list[Visit]  #: dropped: the visit was over
