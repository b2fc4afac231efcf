"""What the number of finished jobs in the database costs: acquire, counts by state, a page of jobs by tag.

The tables are filled by SQL, from one job that was really run to its end through the service.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import sqlalchemy as sa

from balsam_exec.client.service import Service
from balsam_exec.model.base import now
from balsam_exec.model.jobs import JobSpec
from balsam_exec.model.sessions import AcquireRequest, SessionSpec
from balsam_exec.model.sessions import Report as JobReport
from balsam_exec.model.states import JobState
from benchmarks.databases import make_app, services
from benchmarks.harness import Report, main
from tests.support.services import LiveService

ACQUIRED = 100
REPEATS = 15
#: table -> the column with the job's id; every row of the model job is copied.
COPIED = {"jobs": "id", "job_payloads": "job_id", "job_tags": "job_id", "events": "subject_id"}


def run_one(service: Service, site_id: int, app_id: int) -> int:
    """A job, run to its end by a launcher that this is."""
    service.create_jobs([JobSpec(app_id=app_id, workdir="model", tags={"kind": "md", "batch": "0"})])
    session = service.open_session(SessionSpec(site_id=site_id))
    (job,) = service.acquire(session.id, AcquireRequest(max_jobs=1, max_nodes=1))
    for state in (JobState.RUNNING, JobState.RUN_DONE):
        service.report(session.id, [JobReport(job_id=job.id, epoch=job.epoch, state=state, timestamp=now())])
    service.close_session(session.id)
    return job.id


def fill(engine: sa.Engine, model: int, first: int, count: int) -> None:
    """Copy the finished job `model` to the ids from `first` on. Tag `batch` numbers them by the thousand."""
    metadata = sa.MetaData()
    metadata.reflect(engine)
    numbers = sa.select(sa.literal(0).label("n")).cte("numbers", recursive=True)
    numbers = numbers.union_all(sa.select(numbers.c.n + 1).where(numbers.c.n < count - 1))
    with engine.begin() as connection:
        for name, key in COPIED.items():
            table = metadata.tables[name]
            values = {column.name: table.c[column.name] for column in table.columns}
            values[key] = numbers.c.n + first
            if name == "events":
                del values["id"]
            if name == "job_tags":
                number = sa.cast((numbers.c.n + first) / 1000, sa.Integer)
                values["value"] = sa.case((table.c.key == "batch", sa.cast(number, sa.Text)), else_=table.c.value)
            picked = sa.select(*values.values()).where(table.c[key] == model)
            connection.execute(
                table.insert().from_select(list(values), picked.select_from(sa.join(table, numbers, sa.true())))
            )
        counts = metadata.tables["job_counts"]
        finished = counts.c.state == JobState.JOB_FINISHED
        connection.execute(counts.update().where(finished).values(count=counts.c.count + count))
        if engine.dialect.name == "postgresql":
            connection.execute(
                sa.text("SELECT setval(pg_get_serial_sequence('jobs', 'id'), (SELECT max(id) FROM jobs))")
            )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("VACUUM ANALYZE" if engine.dialect.name == "postgresql" else "ANALYZE"))


def prepare(live: LiveService, finished: int) -> dict[str, Callable[[], object]]:
    """A service over `finished` finished jobs and some runnable ones; what is to be measured with it."""
    service = live.service
    site_id, app_id = make_app(live)
    model = run_one(service, site_id, app_id)
    engine = sa.create_engine(live.database)
    fill(engine, model, model + 1, finished - 1)
    engine.dispose()
    service.create_jobs([JobSpec(app_id=app_id, workdir=f"new/{n}") for n in range(ACQUIRED * (REPEATS + 1))])
    session = service.open_session(SessionSpec(site_id=site_id, ttl_sec=600))

    def acquire() -> None:
        jobs = service.acquire(session.id, AcquireRequest(max_jobs=ACQUIRED, max_nodes=1))
        if len(jobs) != ACQUIRED:
            raise SystemExit(f"acquired {len(jobs)} of {ACQUIRED}")

    return {
        f"acquire {ACQUIRED}": acquire,
        "counts by state": service.job_states,
        "page of 100 by a tag of all": lambda: service.jobs(tags={"kind": "md"}, limit=100),
        "page of 100 by a tag of 1,000": lambda: service.jobs(tags={"batch": "3"}, limit=100),
    }


def in_turn(calls: tuple[Callable[[], object], Callable[[], object]]) -> tuple[list[float], list[float]]:
    """Milliseconds of each call, taken in turn after a warm-up, so that both see the same machine."""
    found: tuple[list[float], list[float]] = ([], [])
    for number in range(REPEATS + 1):
        for call, times in zip(calls, found, strict=True):
            start = time.perf_counter()
            call()
            if number:
                times.append(1e3 * (time.perf_counter() - start))
    return found


def measure(options: argparse.Namespace) -> Report:
    sizes = (options.small, options.large)
    report = Report(f"With {sizes[0]:,} and with {sizes[1]:,} finished jobs in the database")
    with services() as small, services() as large:
        for name in small:
            few, many = (prepare(running[name], size) for running, size in zip((small, large), sizes, strict=True))
            for what in few:
                times = in_turn((few[what], many[what]))
                for size, found in zip(sizes, times, strict=True):
                    report.add(f"{name}: {what}, {size:,}", found, "ms")
                growth = median(times[1]) / median(times[0])
                report.add(f"{name}: {what}, growth", [growth], "x", "within 2", growth <= 2)
    return report


if __name__ == "__main__":
    main(measure, small=10_000, large=1_000_000)
