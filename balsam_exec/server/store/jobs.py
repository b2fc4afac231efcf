"""SQL of jobs: what the state machine reads and writes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BindParameter, Connection, Select, bindparam, delete, insert, select, update

from balsam_exec.model.states import JobState, Step, is_lost, waits_for
from balsam_exec.server.store import dialect
from balsam_exec.server.store.dialect import any_of
from balsam_exec.server.store.prepared import Prepared
from balsam_exec.server.store.schema import job_edges, job_payloads, job_results, job_tags, jobs, transfers
from balsam_exec.server.store.types import AnyRow, IdList

_IDS = bindparam("ids", type_=IdList())
_OWNER: BindParameter[int] = bindparam("owner")

JOB_COLUMNS = (
    *("id", "owner_id", "site_id", "app_id", "state", "priority", "steps", "pending_parents", "epoch"),
    *("num_nodes", "ranks_per_node", "threads_per_rank", "threads_per_core", "gpus_per_rank"),
    *("node_packing_count", "wall_time_min", "tag_marks", "created", "last_update"),
    *("on_parent_failure", "failed_parents", "root_cause"),
)
PAYLOAD_COLUMNS = (
    *("job_id", "workdir", "tags", "data", "parameters", "launch_params", "transfers", "arguments"),
    *("stdout", "stderr", "input_files"),
)
RESULT_COLUMNS = ("job_id", "ok", "value", "exception", "error", "reason", "return_code")


@dataclass(slots=True)
class JobRow:
    """What decides a job's way, as it is in the database and then as it will be."""

    id: int
    owner_id: int
    site_id: int
    app_id: int
    state: JobState
    steps: Step
    pending_parents: int
    session_id: int | None
    epoch: int
    batch_job_id: int | None
    return_code: int | None
    kill_requested: bool  #: by the launcher that holds it
    tag_marks: int | None  #: of its tags (`service.unit.tag_marks`); None where they were not kept
    on_parent_failure: str  #: an OnParentFailure
    failed_parents: int  #: of the pending ones those that are FAILED or USER_KILLED
    root_cause: int | None  #: it has failed because of this job, which is above it
    num_runs: int

    @property
    def waits_for(self) -> int:
        """How many parents it waits for."""
        return waits_for(self.on_parent_failure, self.pending_parents, self.failed_parents)

    @property
    def is_lost(self) -> bool:
        """It cannot run, because a parent has failed."""
        return is_lost(self.on_parent_failure, self.failed_parents)

    @classmethod
    def of(cls, row: AnyRow) -> JobRow:
        id_, owner_id, site_id, app_id, state, steps, *rest = row
        return cls(id_, owner_id, site_id, app_id, JobState(state), Step(steps), *rest)


STATE_COLUMNS = [jobs.c[field] for field in JobRow.__slots__]
_LOCK_BY_ID = Prepared(
    select(*STATE_COLUMNS)
    .where(any_of(jobs.c.id, _IDS), jobs.c.owner_id == _OWNER)
    .order_by(jobs.c.id)
    .with_for_update()
)
_LOCK_BY_SESSION = (
    select(*STATE_COLUMNS).where(jobs.c.session_id == bindparam("session")).order_by(jobs.c.id).with_for_update()
)
_PARENT_STATES = (
    select(jobs.c.id, jobs.c.state)
    .where(any_of(jobs.c.id, _IDS), jobs.c.owner_id == _OWNER)
    .order_by(jobs.c.id)
    .with_for_update(read=True)
)
_WRITE = Prepared(
    update(jobs)
    .where(any_of(jobs.c.id, _IDS))
    .values(
        state=bindparam("to_state"),
        session_id=bindparam("session"),
        batch_job_id=bindparam("batch_job"),
        return_code=bindparam("code"),
        kill_requested=bindparam("kill"),
        root_cause=bindparam("root"),
        epoch=jobs.c.epoch + bindparam("epochs"),
        num_runs=jobs.c.num_runs + bindparam("runs"),
        last_update=bindparam("now"),
    )
)
_DELETE = delete(jobs).where(any_of(jobs.c.id, _IDS))
_DELETE_RESULTS = delete(job_results).where(any_of(job_results.c.job_id, _IDS))
_TRANSFERS = (
    update(transfers)
    .where(
        any_of(transfers.c.job_id, _IDS),
        transfers.c.direction == bindparam("which"),
        transfers.c.state.in_(bindparam("sources", expanding=True)),
    )
    .values(state=bindparam("to_state"))
)


def lock(connection: Connection, owner_id: int, ids: Iterable[int]) -> dict[int, JobRow]:
    """Those of the jobs that exist and are the owner's, locked until the transaction ends."""
    rows = _LOCK_BY_ID.rows(connection, {"ids": sorted(set(ids)), "owner": owner_id})
    return {row[0]: JobRow.of(row) for row in rows}


def lock_selected(connection: Connection, query: Select[Any]) -> list[JobRow]:
    """The jobs of a query over STATE_COLUMNS, locked."""
    return [JobRow.of(row) for row in connection.execute(query.with_for_update(of=jobs))]


def lock_leased(connection: Connection, session_id: int) -> list[JobRow]:
    return [JobRow.of(row) for row in connection.execute(_LOCK_BY_SESSION, {"session": session_id})]


def parent_states(connection: Connection, owner_id: int, ids: Iterable[int]) -> dict[int, JobState]:
    """States that stay until the transaction ends."""
    rows = connection.execute(_PARENT_STATES, {"ids": sorted(set(ids)), "owner": owner_id})
    return {job_id: JobState(state) for job_id, state in rows}


def insert_jobs(
    connection: Connection,
    rows: Sequence[Sequence[Any]],
    payloads: Sequence[Sequence[Any]],
    tags: Sequence[Sequence[Any]],
    edges: Sequence[Sequence[Any]],
) -> None:
    """Rows of JOB_COLUMNS, PAYLOAD_COLUMNS, (owner, key, value, job) and (parent, child)."""
    dialect.bulk_insert(connection, jobs, JOB_COLUMNS, rows)
    dialect.bulk_insert(connection, job_payloads, PAYLOAD_COLUMNS, payloads)
    dialect.bulk_insert(connection, job_tags, ("owner_id", "key", "value", "job_id"), tags)
    dialect.bulk_insert(connection, job_edges, ("parent_id", "child_id"), edges)


def write_states(connection: Connection, changed: Iterable[tuple[JobRow, int, int]], now: int) -> None:
    """Store jobs as they are now; with each, by how much its epoch and its number of runs grow. Equal changes go in one
    statement."""
    groups: defaultdict[tuple[Any, ...], list[int]] = defaultdict(list)
    for job, *growth in changed:
        change = (job.state.value, job.session_id, job.batch_job_id, job.return_code, job.kill_requested)
        groups[*change, job.root_cause, *growth].append(job.id)
    for (state, session_id, batch_job_id, return_code, kill, root, epochs, runs), ids in groups.items():
        _WRITE.run(
            connection,
            {
                "ids": ids,
                "to_state": state,
                "session": session_id,
                "batch_job": batch_job_id,
                "code": return_code,
                "kill": kill,
                "root": root,
                "epochs": epochs,
                "runs": runs,
                "now": now,
            },
        )


def insert_results(connection: Connection, rows: Sequence[Sequence[Any]]) -> None:
    """Rows of RESULT_COLUMNS."""
    dialect.bulk_insert(connection, job_results, RESULT_COLUMNS, rows)


def delete_results(connection: Connection, ids: Sequence[int]) -> None:
    connection.execute(_DELETE_RESULTS, {"ids": ids})


def move_transfers(
    connection: Connection, ids: Sequence[int], direction: str, sources: Sequence[str], target: str
) -> None:
    """All transfers of the jobs in one direction and in one of the states `sources` go to `target`."""
    connection.execute(_TRANSFERS, {"ids": ids, "which": direction, "sources": sources, "to_state": target})


def delete_jobs(connection: Connection, ids: Sequence[int]) -> None:
    """With all that hangs on them but the log."""
    connection.execute(_DELETE, {"ids": ids})


def replace_tags(connection: Connection, owner_id: int, ids: Sequence[int], tags: dict[str, str]) -> None:
    connection.execute(delete(job_tags).where(any_of(job_tags.c.job_id, _IDS)), {"ids": ids})
    rows = [(owner_id, key, value, job_id) for job_id in ids for key, value in tags.items()]
    dialect.bulk_insert(connection, job_tags, ("owner_id", "key", "value", "job_id"), rows)


def update_fields(
    connection: Connection, ids: Sequence[int], fields: dict[str, Any], payload: dict[str, Any], now: int
) -> None:
    """The same new values of columns of `jobs` and of `job_payloads` for all of the jobs."""
    statement = update(jobs).where(any_of(jobs.c.id, _IDS)).values(**fields, last_update=now)
    connection.execute(statement, {"ids": ids})
    if payload:
        statement = update(job_payloads).where(any_of(job_payloads.c.job_id, _IDS)).values(**payload)
        connection.execute(statement, {"ids": ids})


def insert_transfers(connection: Connection, rows: list[dict[str, Any]]) -> None:
    if rows:
        connection.execute(insert(transfers), rows)


def without_default_outputs(records: Iterable[dict[str, Any]]) -> None:
    """Leave stdout and stderr out where they are the usual ones: NULL in the table, and nothing on the wire."""
    for record in records:
        for name in ("stdout", "stderr"):
            if record[name] is None:
                del record[name]
