"""What is asked of a process that runs hooks, and what it says."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict

from balsam_exec.model.base import storable
from balsam_exec.model.jobs import JobPatch, JobRecord

#: Of a traceback in an event, in characters.
TAIL = 4000


class HookCall(NamedTuple):
    """One hook of one job, to be run in the job's workdir."""

    hook: str  #: the method's name, or INPUT_FILES
    job: JobRecord
    workdir: str
    app_digest: str = ""
    environment: Mapping[str, str] = {}  #: set while it runs
    isolated: bool = False  #: the process is of no more use to others afterwards
    parents: tuple[tuple[int, str], ...] = ()  #: for INPUT_FILES: id and workdir


class Ending(StrEnum):
    """How a hook ended."""

    RETURNED = "returned"
    RAISED = "raised"
    BROKEN = "broken"  #: it could not even begin: no workdir, or code that does not load here
    DIED = "died"  #: its process did
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"


Told = Annotated[str, BeforeValidator(storable)]


class HookAnswer(BaseModel):
    """What came of a hook."""

    model_config = ConfigDict(frozen=True)

    ending: Ending
    patch: JobPatch = JobPatch()  #: what it changed in `self.job` and has not saved
    moved: bool = False  #: it has saved a new state by itself
    text: str = ""  #: what `shell_preamble` returned
    error: Told = ""  #: what went wrong, in a line
    traceback: Told = ""  #: its end
