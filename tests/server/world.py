"""A service without HTTP: one database, a clock that tests turn, and short ways to the use cases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import func, select

from balsam_exec.model.apps import AppSpec
from balsam_exec.model.jobs import JobCreated, JobPatch, JobSpec, Result
from balsam_exec.model.queries import EventQuery, FeedQuery, JobQuery
from balsam_exec.model.sessions import AcquireRequest, Report, SessionSpec
from balsam_exec.model.sites import SiteSpec
from balsam_exec.model.states import FAILURES, WAITING, JobState, OnParentFailure
from balsam_exec.server.hub import Hub
from balsam_exec.server.migrations import migrate
from balsam_exec.server.service import apps, create, feed, jobs, leases, sessions, sites, update, users
from balsam_exec.server.service.runtime import Runtime
from balsam_exec.server.store import leases as lease_store
from balsam_exec.server.store.database import Database
from balsam_exec.server.store.schema import job_counts, job_edges, job_results, metadata
from balsam_exec.server.store.schema import jobs as job_table
from balsam_exec.server.store.types import moment

SECOND = 1_000_000
S = JobState
#: The states in which a job may have a result.
AFTER_RUN = {S.RUN_DONE, S.POSTPROCESSED, S.STAGED_OUT, S.JOB_FINISHED, S.RUN_ERROR, S.RUN_TIMEOUT, S.FAILED}
AFTER_RUN |= {S.USER_KILLED}  # after RUN_DONE, while it waited for its postprocess
_CREATED = TypeAdapter(list[JobCreated])


def check_dependent(job: Any) -> None:
    """A job (a row) stands where its parents have it be."""
    lost = job.on_parent_failure == OnParentFailure.FAIL and job.failed_parents > 0
    runs_all_the_same = job.on_parent_failure == OnParentFailure.RUN
    waits_for = job.pending_parents - (job.failed_parents if runs_all_the_same else 0)
    if job.state in WAITING and job.session_id is None:
        assert not lost
        assert (job.state == S.AWAITING_PARENTS) == (waits_for > 0)
    if job.root_cause is not None:
        assert job.state == S.FAILED
        assert lost
    assert job.num_runs >= (job.session_id is not None)


class World:
    """One user with a site and two apps: `python` (run only) and `hooked` (run and every hook)."""

    def __init__(self, url: str) -> None:
        migrate(url)
        self.now = 1_700_000_000 * SECOND
        self.database = Database(url, threads=2)
        self.runtime = Runtime(self.database, Hub(), clock=lambda: self.now)
        self.settle_in_as("ann")

    def settle_in_as(self, name: str) -> None:
        """Be another user, new here too."""
        self.owner = self.new_user(name)
        site = SiteSpec(name="here", transfer_locations={"laptop": "ssh://laptop/"})
        self.site = self.write(sites.create_site, self.owner, site)["id"]
        self.python = self.app("Plain", hooks=["run"])
        self.hooked = self.app("Hooked", hooks=["run", "preprocess", "postprocess", "handle_error", "handle_timeout"])

    def close(self) -> None:
        self.database.close()

    def empty(self) -> None:
        """As new, for the next example of a property."""
        with self.database.engine.begin() as connection:
            for table in reversed(metadata.sorted_tables):
                connection.execute(table.delete())
        self.settle_in_as("ann")

    def write(self, use_case: Any, *args: Any, **kwargs: Any) -> Any:
        return self.runtime.write_now(use_case, *args, **kwargs)

    def read(self, use_case: Any, *args: Any, **kwargs: Any) -> Any:
        return self.runtime.read_now(use_case, *args, **kwargs)

    def later(self, seconds: float) -> None:
        self.now += round(seconds * SECOND)

    def new_user(self, name: str) -> int:
        found: int = self.write(users.create_user, name, None)
        return found

    def app(self, name: str, **spec: Any) -> int:
        payload = {"payload": b"code"} if "hooks" in spec else {}
        found: int = self.write(apps.put_app, self.owner, AppSpec(site_id=self.site, name=name, **payload, **spec))[
            "id"
        ]
        return found

    def spec(self, app_id: int | None = None, **fields: Any) -> JobSpec:
        return JobSpec(**{"app_id": app_id or self.python, "workdir": "w", **fields})

    def create(self, *specs: JobSpec, key: str | None = None, digest: bytes = b"") -> list[int]:
        return [job.id for job in self.created(*specs, key=key, digest=digest)]

    def created(self, *specs: JobSpec, key: str | None = None, digest: bytes = b"") -> list[JobCreated]:
        body = self.write(create.create_jobs, self.owner, specs or [self.spec()], key, digest)
        return _CREATED.validate_json(body)

    def job(self, job_id: int) -> dict[str, Any]:
        found: dict[str, Any] = self.read(jobs.job, self.owner, job_id)
        return found

    def state(self, job_id: int) -> str:
        return str(self.job(job_id)["state"])

    def epoch(self, job_id: int) -> int:
        with self.database.reading() as connection:
            found: int = connection.execute(select(job_table.c.epoch).where(job_table.c.id == job_id)).scalar_one()
        return found

    def states(self, ids: Iterable[int]) -> list[str]:
        return [self.state(job_id) for job_id in ids]

    def open(self, ttl_sec: float = 60, batch_job_id: int | None = None) -> int:
        spec = SessionSpec(site_id=self.site, ttl_sec=ttl_sec, batch_job_id=batch_job_id)
        found: int = self.write(sessions.open_session, self.owner, spec)["id"]
        return found

    def acquire(self, session: int, max_jobs: int = 100, key: str | None = None, **wanted: Any) -> list[dict[str, Any]]:
        request = AcquireRequest(**{"max_jobs": max_jobs, "max_nodes": 1, **wanted})
        found: list[dict[str, Any]] = self.write(leases.acquire, self.owner, session, request, key).jobs
        return found

    def a_report(self, job: dict[str, Any], state: JobState | None, **fields: Any) -> Report:
        return Report(job_id=job["id"], epoch=job["epoch"], state=state, timestamp=moment(self.now), **fields)

    def report(self, session: int, *reports: Report) -> None:
        self.write(leases.report, self.owner, session, reports)

    def run(self, session: int, job: dict[str, Any], end: JobState = S.RUN_DONE, **fields: Any) -> None:
        """RUNNING and how it ended, in one report."""
        if "result" not in fields and end is not S.RUN_TIMEOUT:
            fields["result"] = Result(ok=end is S.RUN_DONE, value=b"value", return_code=int(end is S.RUN_ERROR))
        self.report(session, self.a_report(job, S.RUNNING), self.a_report(job, end, **fields))

    def started(self, *specs: JobSpec) -> tuple[int, list[dict[str, Any]]]:
        """New jobs, RUNNING in a new session."""
        ids = self.create(*specs)
        session = self.open()
        leased = [job for job in self.acquire(session) if job["id"] in ids]
        assert len(leased) == len(ids)
        self.report(session, *(self.a_report(job, S.RUNNING) for job in leased))
        return session, leased

    def finished(self, *specs: JobSpec) -> list[int]:
        session, leased = self.started(*specs)
        self.report(session, *(self.a_report(job, S.RUN_DONE, result=Result(ok=True)) for job in leased))
        self.write(sessions.close_session, self.owner, session)
        return [job["id"] for job in leased]

    def close_session(self, session: int) -> None:
        self.write(sessions.close_session, self.owner, session)

    def patch(self, job_id: int, **fields: Any) -> dict[str, Any]:
        found: dict[str, Any] = self.write(update.patch_job, self.owner, job_id, JobPatch(**fields))
        return found

    def cancel(self, *ids: int) -> list[int]:
        found: list[int] = self.write(update.cancel_jobs, self.owner, ids)
        return found

    def kill(self, *ids: int) -> dict[str, list[int]]:
        found: dict[str, list[int]] = self.write(update.kill_jobs, self.owner, ids)
        return found

    def orders(self, session: int) -> dict[int, int]:
        """What a heartbeat of the session is told to kill: job id -> epoch."""
        found: dict[int, int] = self.write(leases.heartbeat, self.owner, session)["kill"]
        return found

    def held(self) -> dict[int, bool]:
        """The jobs that sessions hold, and whether they are to kill them."""
        with self.database.reading() as connection:
            query = select(job_table.c.id, job_table.c.kill_requested).where(job_table.c.session_id.is_not(None))
            return dict(connection.execute(query).all())

    def reap(self) -> None:
        """What the reaper does in the service, with this world's clock."""
        for session in self.read(lease_store.expired, self.now):
            self.write(leases.expire_session, session)

    def feed(self, cursor: int | None, **query: Any) -> dict[str, Any]:
        told: feed.Told = self.read(feed.read_feed, self.owner, cursor, FeedQuery(**query))
        return {"cursor": str(told.event_id), "events": told.events}

    def hops(self, job_id: int) -> list[tuple[str, str]]:
        page = self.read(feed.log, self.owner, EventQuery(job_id=[job_id], limit=1000))
        return [(event["from_state"], event["to_state"]) for event in page["results"]]

    def last_event(self, job_id: int) -> dict[str, Any]:
        page = self.read(feed.log, self.owner, EventQuery(job_id=[job_id], limit=1, ordering="-id"))
        found: dict[str, Any] = page["results"][0]
        return found

    def count(self, **query: Any) -> int:
        found: int = self.read(jobs.count, self.owner, JobQuery(**query))
        return found

    def check_invariants(self) -> None:
        """What must be true after every transaction, compared with the tables themselves."""
        with self.database.reading() as connection:
            counted = {
                (row.site_id, row.state): row.count for row in connection.execute(select(job_counts)) if row.count
            }
            real = connection.execute(
                select(job_table.c.site_id, job_table.c.state, func.count()).group_by(
                    job_table.c.site_id, job_table.c.state
                )
            )
            assert counted == {(site, state): number for site, state, number in real}
            states = dict(connection.execute(select(job_table.c.id, job_table.c.state)).all())
            unfinished, failed = Counter[int](), Counter[int]()
            for parent, child in connection.execute(select(job_edges.c.parent_id, job_edges.c.child_id)):
                unfinished[child] += states[parent] != S.JOB_FINISHED
                failed[child] += states[parent] in FAILURES
            for job in connection.execute(select(job_table)):
                assert (job.pending_parents, job.failed_parents) == (unfinished[job.id], failed[job.id])
                check_dependent(job)
            for job_id in connection.execute(select(job_results.c.job_id)).scalars():
                assert states[job_id] in {
                    S.RUN_DONE,
                    S.POSTPROCESSED,
                    S.JOB_FINISHED,
                    S.RUN_ERROR,
                    S.FAILED,
                    S.RUN_TIMEOUT,
                }
