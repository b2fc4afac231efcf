"""SQL that counts a site's jobs by what they need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import BindParameter, ColumnElement, Connection, Float, bindparam, case, cast, func, select, text

from balsam_exec.model.backlog import MAX_GROUPS
from balsam_exec.model.states import JobState
from balsam_exec.server.store.schema import RUNNABLE_UNLEASED, job_tags, jobs, sessions
from balsam_exec.server.store.types import dicts

#: Of more jobs than these only a part is looked at.
SAMPLE = 20_000

_NEEDS = tuple(
    jobs.c[name]
    for name in (
        *("num_nodes", "ranks_per_node", "threads_per_rank", "threads_per_core", "gpus_per_rank"),
        *("node_packing_count", "wall_time_min"),
    )
)
#: The condition on the nodes is always true; without it SQLite takes another index and reads all jobs of the site.
_WAITING = (text(RUNNABLE_UNLEASED), jobs.c.site_id == bindparam("site"), jobs.c.num_nodes >= 1)
_STEP: BindParameter[int] = bindparam("step")
#: One of so many jobs, whatever the pattern in which they were made: ids, scattered by a multiplier modulo a prime.
_SAMPLED = jobs.c.id % 2_147_483_647 * 1_103_515_245 % 2_147_483_647 % _STEP == 0
_RUNNABLE = (
    select(*_NEEDS, (func.count() * _STEP).label("count"))
    .where(*_WAITING)
    .group_by(*_NEEDS)
    .order_by(*_NEEDS)
    .limit(MAX_GROUPS)
)
_NOW = bindparam("now", type_=jobs.c.last_update.type)
#: Clocks differ: what seems to have begun in the future has just begun.
_ELAPSED = case(
    ((jobs.c.state == JobState.RUNNING.value) & (jobs.c.last_update < _NOW), _NOW - jobs.c.last_update), else_=0
)
_HELD = (
    select(
        sessions.c.batch_job_id,
        *_NEEDS,
        func.count().label("count"),
        (cast(func.sum(_ELAPSED), Float) / 1e6).label("elapsed_sec"),
    )
    .join(jobs, jobs.c.session_id == sessions.c.id)
    .where(sessions.c.site_id == bindparam("site"), sessions.c.batch_job_id.is_not(None))
    .group_by(sessions.c.batch_job_id, *_NEEDS)
    .order_by(sessions.c.batch_job_id, *_NEEDS)
    .limit(MAX_GROUPS)
)


def runnable(
    connection: Connection, owner_id: int, site_id: int, tags: Sequence[tuple[str, str]]
) -> list[dict[str, Any]]:
    """Groups of the jobs that no launcher holds, with all of the tags; estimates where there are more than SAMPLE."""
    tagged = [_has_tag(owner_id, *pair) for pair in tags]
    number = select(func.count()).select_from(jobs).where(*_WAITING, *tagged)
    step = -(-connection.execute(number, {"site": site_id}).scalar_one() // SAMPLE) or 1
    query = _RUNNABLE.where(*tagged)
    return dicts(connection.execute(query.where(_SAMPLED) if step > 1 else query, {"site": site_id, "step": step}))


def _has_tag(owner_id: int, key: str, value: str) -> ColumnElement[bool]:
    tag = job_tags.alias()
    where = (tag.c.owner_id == owner_id, tag.c.key == key, tag.c.value == value, tag.c.job_id == jobs.c.id)
    return select(tag.c.job_id).where(*where).exists()


def held(connection: Connection, site_id: int, now: int) -> list[dict[str, Any]]:
    """Groups of the jobs that launchers hold, by batch job."""
    return dicts(connection.execute(_HELD, {"site": site_id, "now": now}))
