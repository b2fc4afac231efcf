"""Changing, cancelling and deleting jobs, one by one, in bulk and by query."""

from __future__ import annotations

from typing import Any

import pytest

from balsam_exec.model.errors import Conflict, IllegalTransition, InvalidRequest, NotFound, ParameterError, StaleLease
from balsam_exec.model.jobs import JobBulkPatch, JobPatch
from balsam_exec.model.queries import JobQuery, TransferQuery
from balsam_exec.model.states import TRANSITIONS, Actor
from balsam_exec.model.transfers import TransferBulkPatch, TransferPatch, TransferState
from balsam_exec.server.service import feed, transfers, update
from tests.server.test_creating import SLOTS
from tests.server.world import S, World


def patch_matching(world: World, query: dict[str, Any], **fields: Any) -> int:
    found: int = world.write(update.patch_matching, world.owner, JobQuery(**query), JobPatch(**fields))
    return found


def delete_matching(world: World, **query: Any) -> int:
    found: int = world.write(update.delete_matching, world.owner, JobQuery(**query))
    return found


def bulk(world: World, *patches: JobBulkPatch) -> int:
    found: int = world.write(update.patch_jobs, world.owner, patches)
    return found


def test_every_field_can_change(world: World) -> None:
    [job_id] = world.create(world.spec(tags={"a": "b"}))
    fields: dict[str, Any] = {
        "workdir": "other",
        "tags": {"c": "d"},
        "data": {"e": 1},
        "arguments": b"new",
        "num_nodes": 2,
        "gpus_per_rank": 1.5,
        "wall_time_min": 30,
        "launch_params": {"x": "y"},
    }
    job = world.patch(job_id, **fields)
    assert {name: job[name] for name in fields} == fields
    assert world.count(tags=["a:b"]) == 0
    assert world.count(tags=["c:d"]) == 1
    [leased] = world.acquire(world.open(), max_nodes=2, max_gpus_per_node=2, filter_tags={"c": "d"})
    assert leased["arguments"] == b"new"


def test_new_wall_times_change_the_order(world: World) -> None:
    first, second = world.create(*[world.spec()] * 2)
    world.patch(second, wall_time_min=5)
    assert [job["id"] for job in world.acquire(world.open())] == [second, first]


def test_what_a_launcher_holds_keeps_its_resources(world: World) -> None:
    world.create()
    [job] = world.acquire(world.open())
    for fields in ({"num_nodes": 2}, {"workdir": "x"}, {"arguments": b"x"}):
        with pytest.raises(Conflict, match="a launcher holds job"):
            world.patch(job["id"], **fields)
    assert world.patch(job["id"], tags={"a": "b"}, data={"c": 1})["tags"] == {"a": "b"}


def test_changed_parameters_are_checked(world: World) -> None:
    command = world.app("Echo", command_template="echo {{ x }}", parameters={"x": {}})
    [job_id] = world.create(world.spec(command, parameters={"x": 1}))
    with pytest.raises(ParameterError, match="unknown: y"):
        world.patch(job_id, parameters={"x": 1, "y": 2})
    with pytest.raises(ParameterError):
        world.patch(job_id, arguments=b"x")
    assert world.patch(job_id, parameters={"x": 2})["parameters"] == {"x": 2}


@pytest.mark.parametrize("target", sorted(S))
def test_the_api_makes_the_hops_of_users_and_sites_only(world: World, target: S) -> None:
    [job_id] = world.create(world.spec(world.hooked))
    source = S.STAGED_IN
    assert world.state(job_id) == source
    if target is source:
        assert world.patch(job_id, state=target)["state"] == source  # repeated: no change
    elif {Actor.USER, Actor.SITE} & TRANSITIONS.get((source, target), frozenset()):
        assert world.patch(job_id, state=target)["state"] == target
    else:
        with pytest.raises(IllegalTransition, match=f"job {job_id}"):
            world.patch(job_id, state=target)
        assert world.state(job_id) == source


def test_a_restart_forgets_the_result(world: World) -> None:
    [job_id] = world.finished(world.spec())
    world.patch(job_id, state=S.RESTART_READY)
    assert world.job(job_id)["return_code"] is None
    assert world.read(feed.results, world.owner, [job_id]) == {}
    [job] = world.acquire(world.open())
    assert job["restarted"]


@pytest.mark.parametrize("how", ["fail", "delete"])
def test_whoever_held_a_job_that_was_taken_away_is_refused(world: World, how: str) -> None:
    [job_id] = world.create()
    session = world.open()
    [job] = world.acquire(session)
    if how == "fail":
        world.patch(job_id, state=S.FAILED)
    else:
        world.write(update.delete_job, world.owner, job_id)
    with pytest.raises(StaleLease):
        world.report(session, world.a_report(job, S.RUNNING))


def test_only_what_waits_and_nobody_holds_is_cancelled(world: World) -> None:
    [finished] = world.finished(world.spec())
    session, [running] = world.started(world.spec())
    world.create()
    [held] = world.acquire(session)
    waiting, staged = world.create(world.spec(), world.spec(world.hooked))
    [child] = world.create(world.spec(parent_ids=[waiting]))
    listed = finished, running["id"], held["id"], waiting, staged, child, 4711
    assert world.cancel(*listed) == [waiting, staged, child]
    world.report(session, world.a_report(running, S.RUN_DONE), world.a_report(held, S.RUNNING))
    assert world.states([finished, running["id"]]) == [S.JOB_FINISHED] * 2


def test_a_query_changes_all_or_none(world: World) -> None:
    a = world.create(*[world.spec(tags={"k": "a"})] * 3)
    b = world.create(*[world.spec(tags={"k": "b"})] * 2)
    assert patch_matching(world, {"tags": ["k:a"]}, state=S.USER_KILLED) == 3
    with pytest.raises(IllegalTransition, match=f"job {a[0]}"):
        patch_matching(world, {}, state=S.FAILED)
    assert world.states(b) == [S.PREPROCESSED] * 2
    assert patch_matching(world, {"state": ["USER_KILLED"]}, state=S.RESTART_READY) == 3
    assert patch_matching(world, {"id": [4711]}, state=S.FAILED) == 0


def test_a_query_for_changes_has_no_pages(world: World) -> None:
    with pytest.raises(InvalidRequest, match="limit"):
        patch_matching(world, {"limit": 1}, state=S.FAILED)


def test_bulk_patches_differ(world: World) -> None:
    a, b, c = world.create(*[world.spec()] * 3)
    assert bulk(world, JobBulkPatch(id=a, data={"n": 1}), JobBulkPatch(id=b, data={"n": 2}, state=S.FAILED)) == 2
    assert [world.job(j)["data"] for j in (a, b, c)] == [{"n": 1}, {"n": 2}, {}]
    with pytest.raises(NotFound, match="4711"):
        bulk(world, JobBulkPatch(id=a, state=S.FAILED), JobBulkPatch(id=4711, state=S.FAILED))
    with pytest.raises(IllegalTransition):
        bulk(world, JobBulkPatch(id=a, state=S.FAILED), JobBulkPatch(id=c, state=S.RUNNING))
    with pytest.raises(InvalidRequest, match="twice"):
        bulk(world, JobBulkPatch(id=a, data={"n": 3}), JobBulkPatch(id=a, data={"n": 4}))
    assert world.states([a, b, c]) == [S.PREPROCESSED, S.FAILED, S.PREPROCESSED]


def test_deleting_takes_all_but_the_log(world: World) -> None:
    keep, *gone = world.create(*[world.spec(tags={"k": "v"})] * 3)
    with pytest.raises(InvalidRequest, match="at least one filter"):
        delete_matching(world)
    assert delete_matching(world, id=gone) == 2
    assert world.count() == world.count(tags=["k:v"]) == 1
    assert world.hops(gone[0])[-1] == (S.PREPROCESSED, "deleted")
    with pytest.raises(NotFound):
        world.job(gone[0])
    [new] = world.create()
    assert new > max(gone), "an id was used twice"
    assert world.job(keep)


def test_a_finished_parent_may_go(world: World) -> None:
    [parent] = world.finished(world.spec())
    [other] = world.create()
    [child] = world.create(world.spec(parent_ids=[parent, other]))
    world.write(update.delete_job, world.owner, parent)
    session = world.open()
    [job] = world.acquire(session)
    world.run(session, job)
    assert world.state(child) == S.PREPROCESSED


def test_transfers_carry_their_job_on(world: World) -> None:
    app = world.app("Staged", hooks=["run"], transfers={**SLOTS, "more": {**SLOTS["input"], "required": False}})
    places = {"input": "laptop:/a", "more": "laptop:/b", "output": "laptop:/c"}
    [job_id] = world.create(world.spec(app, transfers=places))
    items = _transfers(world, job_id)
    one, two, out = items["input"], items["more"], items["output"]
    _move(world, one, TransferState.ACTIVE, task_id="t1")
    _move(world, one, TransferState.DONE)
    assert world.state(job_id) == S.READY
    with pytest.raises(IllegalTransition, match="awaiting_job"):
        _move(world, out, TransferState.DONE)
    _move(world, two, TransferState.FAILED, transfer_info={"why": "no route"})
    _move(world, two, TransferState.DONE)
    assert world.state(job_id) == S.PREPROCESSED
    session = world.open()
    [job] = world.acquire(session)
    world.run(session, job)
    assert world.state(job_id) == S.POSTPROCESSED
    assert world.read(transfers.transfer, world.owner, out)["state"] == TransferState.PENDING
    patches = [TransferBulkPatch(id=out, state=TransferState.DONE)]
    assert world.write(transfers.patch_transfers, world.owner, patches) == 1
    assert world.state(job_id) == S.JOB_FINISHED
    world.patch(job_id, state=S.RESTART_READY)
    assert world.read(transfers.transfer, world.owner, out)["state"] == TransferState.AWAITING_JOB


def test_stage_in_waits_for_the_parents(world: World) -> None:
    app = world.app("Staged", hooks=["run"], transfers=SLOTS)
    [parent] = world.create()
    [child] = world.create(world.spec(app, parent_ids=[parent], transfers={"input": "laptop:/a"}))
    item = _transfers(world, child)["input"]
    assert world.read(transfers.transfer, world.owner, item)["state"] == TransferState.AWAITING_JOB
    session = world.open()
    world.run(session, world.acquire(session)[0])
    assert world.state(child) == S.READY
    assert world.read(transfers.transfer, world.owner, item)["state"] == TransferState.PENDING


def _transfers(world: World, job_id: int) -> dict[str, int]:
    page = world.read(transfers.transfers, world.owner, TransferQuery(job_id=[job_id]))
    return {item["slot"]: item["id"] for item in page["results"]}


def _move(world: World, transfer_id: int, state: TransferState, **fields: Any) -> None:
    world.write(transfers.patch_transfer, world.owner, transfer_id, TransferPatch(state=state, **fields))
