"""What sites do for jobs beside running them. The service hands jobs to the agent of their site, and records what it
says of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from balsam_exec.model.base import Json
from balsam_exec.model.errors import NotFound
from balsam_exec.model.hooks import AT_SITE, HookQuery, HookReport, Visit
from balsam_exec.model.queries import JobQuery
from balsam_exec.model.states import JobState
from balsam_exec.server.service import jobs as reading
from balsam_exec.server.service.moves import Moves
from balsam_exec.server.service.unit import Unit
from balsam_exec.server.service.update import apply_each
from balsam_exec.server.store import hooks as store
from balsam_exec.server.store import jobs as job_store
from balsam_exec.server.store import sites as site_store
from balsam_exec.server.store.database import Connection
from balsam_exec.server.store.jobs import JobRow


def work(connection: Connection, owner_id: int, site_id: int, query: HookQuery) -> dict[str, Any]:
    """A `HookWork`: jobs that wait for the site, and what is not as the agent knows it. Raises NotFound (the site)."""
    _check_site(connection, owner_id, site_id)
    known = set(query.known)
    found = {Visit(*row) for row in store.waiting(connection, owner_id, site_id, query.limit + len(known))}
    unsure = known - found
    ids = [visit.job_id for visit in unsure]
    standing = {Visit(*row) for row in store.standing(connection, owner_id, ids)} if ids else set()
    versions = store.digests(connection, owner_id, query.apps) if query.apps else {}
    return {
        "jobs": _jobs(connection, owner_id, sorted(found - known)[: query.limit]),
        "over": sorted(unsure - standing),
        "outdated": [app_id for app_id, digest in query.apps.items() if versions.get(app_id, digest) != digest],
    }


def has_news(work: dict[str, Any]) -> bool:
    return any(work.values())


def _check_site(connection: Connection, owner_id: int, site_id: int) -> None:
    if site_store.site(connection, owner_id, site_id) is None:
        raise NotFound(f"there is no site {site_id}")


def _jobs(connection: Connection, owner_id: int, visits: Sequence[Visit]) -> list[dict[str, Any]]:
    if not visits:
        return []
    ids = [visit.job_id for visit in visits]
    page = reading.jobs(connection, owner_id, JobQuery.model_validate({"id": ids, "limit": len(ids)}))["results"]
    records = [record for record in page if record["state"] in AT_SITE]
    terms = store.terms(connection, ids)
    parents = store.parents(connection, [record["id"] for record in records if record["state"] == JobState.READY])
    return [
        {"job": record, "parents": parents.get(record["id"], []), **terms[record["id"]]}
        for record in records
        if record["id"] in terms
    ]


def record(unit: Unit, owner_id: int, site_id: int, reports: Sequence[HookReport]) -> dict[str, Any]:
    """What came of some visits; those that are over are dropped.

    Raises NotFound (the site), InvalidRequest, IllegalTransition for changes that cannot be made, and then nothing is
    recorded.
    """
    _check_site(unit.connection, owner_id, site_id)
    jobs = job_store.lock(unit.connection, owner_id, (report.visit.job_id for report in reports))
    patches, late, failures = [], [], []
    for visit, patch in ((report.visit, report.patch) for report in reports):
        job = jobs.get(visit.job_id)
        if job is None or job.site_id != site_id or (job.id, job.epoch, job.state) != visit or job.state not in AT_SITE:
            late.append(visit)
            continue
        patches.append((job, patch))
        if patch.state is JobState.FAILED and visit.state is not JobState.RUN_ERROR:
            failures.append(_failure(job, visit, patch.state_data))
    moves = Moves(unit)
    apply_each(unit, moves, patches)
    moves.flush()
    if failures:  # a run that was done, or has not been
        job_store.delete_results(unit.connection, [failure[0] for failure in failures])
        unit.insert_results(failures)
    return {"late": late}


def _failure(job: JobRow, visit: Visit, said: Json | None) -> tuple[Any, ...]:
    """The row of the result of a job that its site fails; after an error of the run, that stands."""
    reason = "timeout" if visit.state is JobState.RUN_TIMEOUT else "exit"
    error = f"job {job.id} failed: {explained(said)}"
    return job.id, False, None, None, error, reason, job.return_code


def explained(data: Json | None) -> str:
    """What an event says, in a line."""
    return "; ".join(f"{key}: {value}" for key, value in (data or {}).items()) or "no reason was given"
