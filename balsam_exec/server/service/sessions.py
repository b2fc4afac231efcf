"""Opening, listing and closing sessions; what they hold is in service/leases.py."""

from __future__ import annotations

from typing import Any

from balsam_exec.model.errors import Conflict, NotFound
from balsam_exec.model.queries import Query
from balsam_exec.model.sessions import SessionSpec
from balsam_exec.model.states import BATCH_JOB_ENDED
from balsam_exec.server.service.leases import end_session, session_record
from balsam_exec.server.service.unit import Unit
from balsam_exec.server.store import batch_jobs as batch_job_store
from balsam_exec.server.store import filters
from balsam_exec.server.store import leases as store
from balsam_exec.server.store import sites as site_store
from balsam_exec.server.store.database import Connection


def open_session(unit: Unit, owner_id: int, spec: SessionSpec) -> dict[str, Any]:
    """Raises NotFound (site, batch job), Conflict for a batch job that has ended or is of another site."""
    if site_store.site(unit.connection, owner_id, spec.site_id) is None:
        raise NotFound(f"there is no site {spec.site_id}")
    if spec.batch_job_id is not None:
        batch_job = batch_job_store.batch_job(unit.connection, owner_id, spec.batch_job_id, lock=True)
        if batch_job is None:
            raise NotFound(f"there is no batch job {spec.batch_job_id}")
        if batch_job.site_id != spec.site_id or batch_job.state in BATCH_JOB_ENDED:
            raise Conflict(
                f"batch job {spec.batch_job_id} is at site {batch_job.site_id} and {batch_job.state}: "
                "a session needs one of its own site that has not ended"
            )
    return session_record(store.insert_session(unit.connection, owner_id, spec, unit.now))


def sessions(connection: Connection, owner_id: int, query: Query) -> dict[str, Any]:
    return filters.page([session_record(row) for row in store.listing(connection, owner_id, query)], query)


def close_session(unit: Unit, owner_id: int, session_id: int) -> None:
    """Raises NotFound, also for one that has been closed before."""
    session = store.lock_session(unit.connection, session_id)
    if session is None or session.owner_id != owner_id:
        raise NotFound(f"there is no session {session_id}")
    end_session(unit, session_id, f"session {session_id} was closed by its launcher")
