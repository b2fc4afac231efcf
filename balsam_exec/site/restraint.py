"""Whether to go on requesting allocations where the last ones came to nothing. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile

from balsam_exec.model.batch_jobs import BatchJobRecord
from balsam_exec.model.states import BatchJobState

#: Seconds before another allocation is requested after one that ended without having run a job, doubling to the last.
FIRST_PAUSE, LAST_PAUSE = 15.0, 3600.0
#: After so many refusals in a row there is no other request until somebody has done something about it.
MAX_REFUSALS = 6


@dataclass(frozen=True, slots=True)
class Restraint:
    """Request nothing for so many seconds; infinite: until there is `help`."""

    seconds: float
    reason: str


def restraint(in_vain: Sequence[BatchJobRecord], helped: datetime | None, now: datetime) -> Restraint | None:
    """What keeps from requesting another allocation; None: nothing does.

    `in_vain` are the last ones, the newest first, up to one that ran a job: those that the scheduler refused, or that
    ended without having run any. Something is wrong with them, or with the jobs that they were for. What was before
    `helped`, the last time that somebody may have mended it, does not count.
    """
    recent = list(takewhile(lambda record: helped is None or _ended(record) > helped, in_vain))
    if not recent:
        return None
    refused = list(takewhile(lambda record: record.state is BatchJobState.SUBMIT_FAILED, recent))
    if len(refused) >= MAX_REFUSALS:
        return Restraint(
            math.inf,
            f"paused, because the scheduler refused the last {len(refused)} requests ({_error(refused[0])}); it goes "
            "on after `balsam site sync`, a restart of the agent, or an allocation of yours that the scheduler takes",
        )
    pause = min(LAST_PAUSE, FIRST_PAUSE * 2.0 ** (len(recent) - 1))
    left = pause - (now - max(map(_ended, recent))).total_seconds()
    if left <= 0:
        return None
    ids = ", ".join(str(record.id) for record in recent)
    why = f" ({_error(refused[0])})" if refused else ""
    return Restraint(left, f"batch jobs {ids} ran no job{why}")


def last_accepted(records: Iterable[BatchJobRecord]) -> datetime | None:
    """When the last one was requested of those that users asked for and the scheduler took."""
    return max((record.created for record in records if record.origin == "user" and record.scheduler_id), default=None)


def _ended(record: BatchJobRecord) -> datetime:
    return record.end_time or record.created


def _error(record: BatchJobRecord) -> str:
    return str(record.status_info.get("error") or "no reason given")
