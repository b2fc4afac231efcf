"""What a site has to do, counted by what its jobs need."""

from __future__ import annotations

import re
from typing import Any

import pytest

from balsam_exec.model.backlog import Backlog, BacklogQuery
from balsam_exec.model.batch_jobs import BatchJobSpec
from balsam_exec.model.errors import InvalidRequest, NotFound
from balsam_exec.server.service import backlog, batch_jobs
from balsam_exec.server.store import backlog as store
from balsam_exec.server.store.types import moment
from tests.server.test_schema import plans
from tests.server.world import SECOND, S, World


def found(world: World, *tags: str) -> Backlog:
    query = BacklogQuery(tags=list(tags))
    answer = world.read(backlog.backlog, world.owner, world.site, query, world.now)
    return Backlog.model_validate(answer)


def counted(groups: list[Any]) -> list[tuple[int, int, int]]:
    return [(group.num_nodes, group.wall_time_min, group.count) for group in groups]


def allocation(world: World) -> int:
    spec = BatchJobSpec(site_id=world.site, num_nodes=1, wall_time_min=5)
    found: int = world.write(batch_jobs.create_batch_job, world.owner, spec)["id"]
    return found


def test_jobs_that_need_the_same_are_one_group(world: World) -> None:
    world.create(*[world.spec(wall_time_min=30)] * 3, *[world.spec(num_nodes=4, wall_time_min=30)] * 2)
    world.create(world.spec(wall_time_min=30, gpus_per_rank=0.5), world.spec(node_packing_count=8))
    groups = found(world).runnable
    assert counted(groups) == [(1, 30, 3), (1, 0, 1), (1, 30, 1), (4, 30, 2)]
    assert [group.node_packing_count for group in groups] == [1, 8, 1, 1]
    assert [group.gpus_per_rank for group in groups] == [0, 0, 0.5, 0]
    assert found(world).held == []


def test_what_is_not_runnable_does_not_count(world: World) -> None:
    first, *_ = world.create(world.spec(wall_time_min=1))
    world.create(world.spec(wall_time_min=2, parent_ids=[first]), world.spec(world.hooked, wall_time_min=3))
    assert counted(found(world).runnable) == [(1, 1, 1)]
    world.kill(first)
    assert found(world).runnable == []


def test_what_launchers_hold_and_for_how_long_it_has_run(world: World) -> None:
    world.create(*[world.spec(wall_time_min=30)] * 4)
    batch_job = allocation(world)
    session = world.open(batch_job_id=batch_job)
    waiting, *running = world.acquire(session, 3)
    world.report(session, *(world.a_report(job, S.RUNNING) for job in running))
    world.later(90)
    [group] = found(world).held
    assert (group.batch_job_id, group.count, group.elapsed_sec) == (batch_job, 3, 180)
    assert isinstance(group.elapsed_sec, float)
    assert counted(found(world).runnable) == [(1, 30, 1)]
    world.close_session(session)  # those that ran time out and may run again
    assert found(world).held == []
    assert counted(found(world).runnable) == [(1, 30, 4)]
    assert waiting["wall_time_min"] == 30


def test_a_job_that_begins_in_the_future_has_not_run_yet(world: World) -> None:
    world.create(world.spec())
    session = world.open(batch_job_id=allocation(world))
    [job] = world.acquire(session)
    report = world.a_report(job, S.RUNNING)
    world.report(session, report.model_copy(update={"timestamp": moment(world.now + 5 * SECOND)}))
    [group] = found(world).held
    assert group.elapsed_sec == 0


def test_jobs_with_tags(world: World) -> None:
    world.create(world.spec(tags={"a": "1", "b": "1"}), world.spec(tags={"a": "1"}), world.spec())
    assert [sum(group.count for group in found(world, *tags).runnable) for tags in ((), ("a:1",), ("a:1", "b:1"))] == [
        3,
        2,
        1,
    ]
    with pytest.raises(InvalidRequest, match="not of the form key:value"):
        found(world, "a")


def test_somebody_elses_site_does_not_exist(world: World) -> None:
    stranger = world.new_user("eve")
    with pytest.raises(NotFound):
        world.read(backlog.backlog, stranger, world.site, BacklogQuery(), world.now)


def test_of_very_many_jobs_a_part_is_counted_for_all(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "SAMPLE", 200)
    for _ in range(4):  # as they come from a campaign that alternates
        world.create(*[world.spec(wall_time_min=1 + n % 2) for n in range(500)])
    groups = found(world).runnable
    assert [group.wall_time_min for group in groups] == [1, 2]
    for group in groups:
        assert group.count % 10 == 0
        assert 700 < group.count < 1300
    assert found(world) == found(world)


def test_only_jobs_that_wait_or_are_held_are_read(world: World) -> None:
    world.finished(*[world.spec()] * 20)
    world.create(*[world.spec()] * 20)
    world.acquire(world.open(batch_job_id=allocation(world)), 10)
    assert "ix_jobs_runnable" in plans(world, store.runnable, world.owner, world.site, [])
    shown = plans(world, store.held, world.site, world.now)
    assert "ix_jobs_session" in shown
    assert not re.search("SCAN jobs|Seq Scan on jobs", shown), shown
