"""Allocations as libEnsemble's scripts ask for them and give them back (seed 003)."""

from __future__ import annotations

import time
from typing import Any

from balsam_exec.api.batch_jobs import BatchJob
from balsam_exec.api.binding import Client
from balsam_exec.executors.libensemble.task import log
from balsam_exec.model.events import Kind
from balsam_exec.model.queries import FeedQuery
from balsam_exec.model.states import BATCH_JOB_ENDED

#: The longest one request waits for news, in seconds.
_POLL_SEC = 30.0


def submit_allocation(client: Client, site: Any, **request: Any) -> BatchJob:
    """Ask the site for an allocation. Raises InvalidRequest, DoesNotExist."""
    allocation = client.BatchJob(site_id=client.site_id(site), **request)
    allocation.save()
    return allocation


def revoke(client: Client, allocation: BatchJob, timeout: float) -> bool:
    """Give the allocation back, once the scheduler has it or it has ended; whether that came within `timeout` seconds.

    If it was not, the allocation is given up all the same, with a warning: its site has yet to hear of it.
    """
    known = _wait_known(client, allocation, timeout)
    allocation.cancel()
    if not known:
        log.warning(
            "allocation %s has no scheduler id after %s s: its site may not have seen it", allocation.id, timeout
        )
    return known


def _wait_known(client: Client, allocation: BatchJob, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    cursor = client.service.feed(FeedQuery()).cursor
    while True:
        allocation.refresh_from_db()
        if allocation.scheduler_id is not None or allocation.state in BATCH_JOB_ENDED:
            return True
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        query = FeedQuery(
            kind=[Kind.BATCH_JOB], subject_id=[allocation.id], cursor=cursor, timeout=min(left, _POLL_SEC)
        )
        cursor = client.service.feed(query).cursor
