"""Why a job is where it is: what `balsam job explain` answers."""

from __future__ import annotations

from enum import StrEnum

from balsam_exec.model.base import Id, Json, Record
from balsam_exec.model.states import JobState


class Cause(StrEnum):
    """What keeps a job where it is, or brought it there: the `code` of a `Reason`. The most telling comes first."""

    # It waits for something else than nodes.
    PARENT_FAILED = "parent_failed"  #: a parent ended without success, and so the job holds, or has failed too
    PARENTS_PENDING = "parents_pending"  #: parents that are yet to finish
    TRANSFER_FAILED = "transfer_failed"  #: files could not be staged
    TRANSFERS_PENDING = "transfers_pending"  #: files are yet to be staged in or out
    INPUT_FILES_PENDING = "input_files_pending"  #: its site is yet to copy the parents' files
    HOOK_PENDING = "hook_pending"  #: its site is yet to run a hook of its app
    AGENT_AWAY = "agent_away"  #: what has to be done at the site is for its agent, and that is not heard of
    # It waits for a launcher.
    TOO_FEW_NODES = "too_few_nodes"  #: it needs more nodes than running allocations have
    TOO_FEW_GPUS = "too_few_gpus"  #: it needs more GPUs on a node than the nodes there have
    SERIAL_ONLY = "serial_only"  #: it has several ranks, and allocations run in serial mode
    TAGS_EXCLUDE_IT = "tags_exclude_it"  #: allocations take only jobs of other tags
    TIME_TOO_SHORT = "time_too_short"  #: it needs more time than is left of running allocations
    NO_ALLOCATION = "no_allocation"  #: none runs at its site
    LAUNCHER_STARTING = "launcher_starting"  #: an allocation runs whose launcher is not heard of yet
    ALLOCATION_QUEUED = "allocation_queued"  #: allocations that are yet to start, and whether it fits there
    BUSY = "busy"  #: there are launchers it fits; other jobs go before it, or are running there
    # A launcher has it.
    KILL_ORDERED = "kill_ordered"  #: its launcher was told to kill it
    LAUNCHER_SILENT = "launcher_silent"  #: its launcher was not heard of for a while
    ASSIGNED = "assigned"  #: a launcher holds it and is about to start it
    RUNNING = "running"  #: it runs
    # It has ended, or ran before.
    FINISHED = "finished"  #: it succeeded
    RUN_FAILED = "run_failed"  #: what it ran ended with an error
    RUN_TIMED_OUT = "run_timed_out"  #: its run ended with its allocation or launcher
    HOOK_FAILED = "hook_failed"  #: a hook of its app failed it
    SET_FAILED = "set_failed"  #: somebody set its state to FAILED
    KILLED = "killed"  #: its owner killed it
    RESTARTED = "restarted"  #: it ran before, and is to run again
    BETWEEN_STATES = "between_states"  #: it does not wait for anything, and leaves this state at once


class Reason(Record):
    """One cause that holds at this moment. `text` is a clause for people; `detail` has its numbers."""

    code: str  #: a `Cause`; newer services may know more
    text: str
    detail: Json = {}


class Explanation(Record):
    """Why a job is in its state; as a string the summary.

    There is at least one reason, and the first is the most telling.
    """

    job_id: Id
    state: JobState
    summary: str  #: one sentence
    reasons: list[Reason]

    def __str__(self) -> str:
        return self.summary
