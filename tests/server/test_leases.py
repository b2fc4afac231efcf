"""Leases: who may report what, repetitions, and how sessions end."""

from __future__ import annotations

from typing import Any

import pytest

from balsam_exec.model.batch_jobs import BatchJobPatch, BatchJobSpec
from balsam_exec.model.errors import Conflict, IllegalTransition, NotFound, StaleLease
from balsam_exec.model.jobs import Result
from balsam_exec.model.queries import EventQuery, SessionQuery
from balsam_exec.model.states import BatchJobState
from balsam_exec.server.service import batch_jobs, feed, leases, sessions
from balsam_exec.server.store.types import moment
from tests.server.world import S, World


def results(world: World, *ids: int) -> dict[int, dict[str, object]]:
    found: dict[int, dict[str, object]] = world.read(feed.results, world.owner, ids)
    return found


def test_a_lease_carries_all_that_is_needed(world: World) -> None:
    fields = {"tags": {"a": "b"}, "data": {"c": 1}, "arguments": b"\x00\xff", "num_nodes": 2, "gpus_per_rank": 0.5}
    [job_id] = world.create(world.spec(**fields))
    [job] = world.acquire(world.open(), max_nodes=2, max_gpus_per_node=1)
    assert {name: job[name] for name in fields} == fields
    assert (job["id"], job["epoch"], job["restarted"]) == (job_id, 1, False)


def test_a_job_is_leased_once(world: World) -> None:
    ids = world.create(*[world.spec()] * 5)
    first, second = world.open(), world.open()
    assert [job["id"] for job in world.acquire(first, 3)] == ids[:3]
    assert [job["id"] for job in world.acquire(second, 3)] == ids[3:]
    assert world.acquire(first) == []


#: Nodes and minutes of jobs, the oldest first.
SHAPES = [(2, 5), (1, 0), (1, 60), (3, 60), (2, 0), (1, 60), (3, 0), (1, 0)]


@pytest.mark.parametrize(
    ("wanted", "order"),
    [
        ({}, [2, 5, 1, 7, 0, 4, 3, 6]),
        ({"sort_by": "long_large_first"}, [3, 2, 5, 0, 1, 7, 4, 6]),
        ({"sort_by": "long_large_first", "max_wall_time_min": 59}, [0, 1, 7, 4, 6]),
        ({"sort_by": "long_large_first", "max_jobs": 5}, [3, 2, 5, 0, 1]),
        ({"min_nodes": 2}, [0, 3, 4, 6]),
        ({"min_nodes": 3, "sort_by": "long_large_first"}, [3, 6]),
    ],
)
def test_the_order_in_which_jobs_are_taken(world: World, wanted: dict[str, Any], order: list[int]) -> None:
    ids = world.create(*(world.spec(num_nodes=nodes, wall_time_min=minutes) for nodes, minutes in SHAPES))
    jobs = world.acquire(world.open(), **{"max_nodes": 4, **wanted})
    assert [ids.index(job["id"]) for job in jobs] == order


@pytest.mark.parametrize(
    ("free", "given"),
    [(0, 1), (0.3, 1), (0.5, 1), (1, 2), (2.99, 3), (3, 4), (5, 5), (None, 6)],
)
def test_jobs_are_given_that_have_room_together(world: World, free: float | None, given: int) -> None:
    shapes = [(1, 2), (1, 2), (1, 1), (1, 1), (2, 1), (3, 1)]
    world.create(*(world.spec(num_nodes=nodes, node_packing_count=packing) for nodes, packing in shapes))
    session = world.open()
    assert len(world.acquire(session, max_nodes=4, max_aggregate_nodes=free)) == given
    rest = world.acquire(session, max_nodes=4)
    assert len(rest) == len(shapes) - given


def test_parts_of_a_node_make_up_a_node(world: World) -> None:
    world.create(*[world.spec(node_packing_count=49)] * 50)
    assert len(world.acquire(world.open(), max_aggregate_nodes=1)) == 49


def test_what_was_given_back_counts_as_waiting_anew(world: World) -> None:
    [job_id] = world.create(world.spec(num_nodes=2))
    session, wanted = world.open(), {"max_nodes": 2, "min_nodes": 2, "min_wait_sec": 20}
    assert world.acquire(session, **wanted) == []
    world.later(20)
    [job] = world.acquire(session, **wanted)
    assert job["id"] == job_id
    world.report(session, world.a_report(job, None))
    assert world.acquire(session, **wanted) == []
    world.later(20)
    assert len(world.acquire(session, **wanted)) == 1


@pytest.mark.parametrize(
    ("fields", "wanted", "fits"),
    [
        ({"num_nodes": 2}, {"max_nodes": 1}, False),
        ({"num_nodes": 2}, {"max_nodes": 2}, True),
        ({"num_nodes": 2}, {"max_nodes": 2, "serial_only": True}, False),
        ({"ranks_per_node": 2}, {"serial_only": True}, False),
        ({"gpus_per_rank": 1}, {}, False),
        ({"gpus_per_rank": 0.5, "ranks_per_node": 4}, {"max_gpus_per_node": 2}, True),
        ({"gpus_per_rank": 7 / 25, "ranks_per_node": 25}, {"max_gpus_per_node": 7}, True),
        ({"gpus_per_rank": 0.5, "ranks_per_node": 4}, {"max_gpus_per_node": 1.5}, False),
        ({"wall_time_min": 10}, {"max_wall_time_min": 9}, False),
        ({"wall_time_min": 10}, {"max_wall_time_min": 10}, True),
        ({}, {"max_wall_time_min": 0}, True),
        ({}, {"max_nodes": 10**12, "max_wall_time_min": 10**12}, True),
        ({"node_packing_count": 2}, {"min_packing_count": 2}, True),
        ({"node_packing_count": 2}, {"min_packing_count": 3}, False),
        ({"ranks_per_node": 2, "threads_per_rank": 3, "threads_per_core": 2}, {"max_cores_per_node": 4}, True),
        ({"ranks_per_node": 2, "threads_per_rank": 3, "threads_per_core": 2}, {"max_cores_per_node": 3}, False),
        ({"tags": {"k": "a", "x": "y"}}, {"filter_tags": {"k": "a"}}, True),
        ({"tags": {"k": "b"}}, {"filter_tags": {"k": "a"}}, False),
        ({"tags": {"k": "a"}}, {"filter_tags": {"k": "a", "x": "y"}}, False),
    ],
)
def test_only_what_fits_is_leased(
    world: World, fields: dict[str, object], wanted: dict[str, object], fits: bool
) -> None:
    world.create(world.spec(**fields))
    assert bool(world.acquire(world.open(), **wanted)) is fits


def test_arguments_are_given_up_to_a_budget(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BUDGET", 1000)
    ids = world.create(world.spec(arguments=b"x" * 2000), *[world.spec(arguments=b"x" * 400)] * 3, world.spec())
    session = world.open()
    taken = [[job["id"] for job in world.acquire(session)] for _ in range(3)]
    assert taken == [ids[:1], ids[1:3], ids[3:]]


def test_a_repeated_acquire_gives_the_same_jobs(world: World) -> None:
    world.create(*[world.spec()] * 4)
    session = world.open()
    first = world.acquire(session, 2, key="a")
    assert world.acquire(session, 2, key="a") == first
    second = world.acquire(session, 2, key="b")
    assert not {job["id"] for job in first} & {job["id"] for job in second}


def test_a_repeated_acquire_gives_only_what_is_still_held(world: World) -> None:
    one, two = world.create(*[world.spec()] * 2)
    session = world.open()
    world.acquire(session, 2, key="a")
    world.patch(one, state=S.FAILED)
    assert [job["id"] for job in world.acquire(session, 2, key="a")] == [two]


def test_a_plain_job_has_four_events(world: World) -> None:
    [job_id] = world.create()
    session = world.open()
    [job] = world.acquire(session)
    world.run(session, job)
    assert world.hops(job_id) == [
        (S.CREATED, S.PREPROCESSED),
        (S.PREPROCESSED, S.RUNNING),
        (S.RUNNING, S.RUN_DONE),
        (S.RUN_DONE, S.JOB_FINISHED),
    ]
    assert results(world, job_id)[job_id]["value"] == b"value"
    assert world.job(job_id)["return_code"] == 0


def test_events_have_the_launchers_time_and_data(world: World) -> None:
    session, [job] = world.started(world.spec())
    done = world.a_report(job, S.RUN_DONE, data={"return_code": 0, "host": "n1"}, result=Result(ok=True))
    world.later(7)
    world.report(session, done)
    log = world.read(feed.log, world.owner, EventQuery(job_id=[job["id"]], to_state=[S.RUN_DONE, S.JOB_FINISHED]))
    reported, settled = log["results"]
    assert (reported["timestamp"], reported["data"]) == (done.timestamp, done.data)
    assert settled["timestamp"] == moment(world.now)


def test_an_error_without_a_handler_fails_the_job(world: World) -> None:
    [job_id] = world.create()
    session = world.open()
    [job] = world.acquire(session)
    failure = Result(ok=False, error="boom", reason="exit", return_code=3)
    world.run(session, job, S.RUN_ERROR, result=failure, data={"return_code": 3})
    assert world.hops(job_id)[-2:] == [(S.RUNNING, S.RUN_ERROR), (S.RUN_ERROR, S.FAILED)]
    assert results(world, job_id)[job_id]["error"] == "boom"
    assert world.job(job_id)["return_code"] == 3


def test_a_timeout_restarts_the_job_without_a_result(world: World) -> None:
    [job_id] = world.create()
    session = world.open()
    [job] = world.acquire(session)
    world.run(session, job, S.RUN_TIMEOUT)
    assert world.state(job_id) == S.RESTART_READY
    assert results(world, job_id) == {}
    [again] = world.acquire(session)
    assert (again["id"], again["restarted"], again["epoch"]) == (job_id, True, job["epoch"] + 1)


def test_a_released_job_is_free_again(world: World) -> None:
    world.create()
    session = world.open()
    [job] = world.acquire(session)
    world.report(session, world.a_report(job, None))
    world.report(session, world.a_report(job, None))  # the answer was lost
    [again] = world.acquire(world.open())
    assert again["epoch"] == job["epoch"] + 1
    with pytest.raises(StaleLease):
        world.report(session, world.a_report(job, None))


def test_an_old_epoch_is_refused_to_the_holder_too(world: World) -> None:
    [job_id] = world.create()
    session = world.open()
    [old] = world.acquire(session)
    world.patch(job_id, state=S.FAILED)
    world.patch(job_id, state=S.RESTART_READY)
    [new] = world.acquire(session)
    assert new["epoch"] == old["epoch"] + 2
    for state in (S.RUNNING, None):
        with pytest.raises(StaleLease):
            world.report(session, world.a_report(old, state))
    world.run(session, new)
    with pytest.raises(StaleLease):
        world.run(session, old)


def test_what_was_released_cannot_be_started(world: World) -> None:
    world.create()
    session = world.open()
    [job] = world.acquire(session)
    world.report(session, world.a_report(job, None))
    with pytest.raises(StaleLease):
        world.report(session, world.a_report(job, S.RUNNING))


def test_a_repeated_report_changes_nothing(world: World) -> None:
    [job_id] = world.create()
    session = world.open()
    [job] = world.acquire(session)
    running = world.a_report(job, S.RUNNING)
    world.report(session, running)
    world.report(session, running)
    world.run(session, job)
    events = world.hops(job_id)
    world.run(session, job, result=Result(ok=True, value=b"other"))
    assert world.hops(job_id) == events
    assert results(world, job_id)[job_id]["value"] == b"value"


@pytest.mark.parametrize("end", [S.RUN_ERROR, S.RUN_TIMEOUT])
def test_a_repeated_report_of_another_end_changes_nothing(world: World, end: S) -> None:
    [job_id] = world.create()
    session = world.open()
    [job] = world.acquire(session)
    world.run(session, job, end)
    events = world.hops(job_id)
    world.run(session, job, end)
    assert world.hops(job_id) == events


def test_a_stale_report_records_nothing_of_its_batch(world: World) -> None:
    good, taken, deleted = world.create(*[world.spec()] * 3)
    session = world.open()
    jobs = {job["id"]: job for job in world.acquire(session)}
    world.patch(taken, state=S.FAILED)
    unknown = {**jobs[deleted], "id": deleted + 1000}
    with pytest.raises(StaleLease) as refused:
        world.report(session, *(world.a_report(job, S.RUNNING) for job in (*jobs.values(), unknown)))
    assert refused.value.detail["job_ids"] == [taken, unknown["id"]]
    assert world.states([good, taken]) == [S.PREPROCESSED, S.FAILED]
    world.report(session, world.a_report(jobs[good], S.RUNNING))


@pytest.mark.parametrize("state", [S.RUN_DONE, S.FAILED, S.PREPROCESSED, S.JOB_FINISHED, S.USER_KILLED])
def test_a_launcher_may_not_skip_the_run(world: World, state: S) -> None:
    world.create()
    session = world.open()
    [job] = world.acquire(session)
    if state is S.PREPROCESSED:
        world.report(session, world.a_report(job, S.RUNNING))
    with pytest.raises(IllegalTransition):
        world.report(session, world.a_report(job, state))


def test_what_runs_cannot_be_released(world: World) -> None:
    session, [job] = world.started(world.spec())
    with pytest.raises(IllegalTransition):
        world.report(session, world.a_report(job, None))


def test_an_expired_session_gives_its_jobs_back(world: World) -> None:
    running, waiting = world.create(*[world.spec()] * 2)
    session = world.open(ttl_sec=10)
    jobs = {job["id"]: job for job in world.acquire(session)}
    world.report(session, world.a_report(jobs[running], S.RUNNING))
    world.later(9)
    world.reap()
    assert world.state(running) == S.RUNNING
    world.later(2)
    for late in (
        lambda: world.acquire(session),
        lambda: world.report(session, world.a_report(jobs[running], S.RUN_DONE)),
        lambda: world.write(leases.heartbeat, world.owner, session),
    ):
        with pytest.raises(NotFound, match="expired"):
            late()
    world.reap()
    assert world.states([running, waiting]) == [S.RESTART_READY, S.PREPROCESSED]
    assert world.hops(running)[-2:] == [(S.RUNNING, S.RUN_TIMEOUT), (S.RUN_TIMEOUT, S.RESTART_READY)]
    again = {job["id"]: job for job in world.acquire(world.open())}
    assert again[running]["epoch"] == jobs[running]["epoch"] + 2
    assert world.read(sessions.sessions, world.owner, SessionQuery(id=[session]))["results"] == []


def test_why_a_job_timed_out_is_in_its_event(world: World) -> None:
    session, [job] = world.started(world.spec(world.python))
    world.later(1000)
    world.reap()
    assert f"session {session} expired" in _timeout_event(world, job["id"])["reason"]


def _timeout_event(world: World, job_id: int) -> dict[str, str]:
    page = world.read(feed.log, world.owner, EventQuery(job_id=[job_id], to_state=[S.RUN_TIMEOUT]))
    data: dict[str, str] = page["results"][0]["data"]
    return data


@pytest.mark.parametrize("sign", ["acquire", "report", "heartbeat"])
def test_every_sign_of_life_extends_the_session(world: World, sign: str) -> None:
    world.create()
    session = world.open(ttl_sec=10)
    [job] = world.acquire(session)
    for _ in range(3):
        world.later(9)
        world.reap()
        if sign == "acquire":
            world.acquire(session)
        elif sign == "report":
            world.report(session, world.a_report(job, S.RUNNING))
        else:
            world.write(leases.heartbeat, world.owner, session)


def test_a_closed_session_gives_its_jobs_back_at_once(world: World) -> None:
    session, [job] = world.started(world.spec())
    world.close_session(session)
    assert world.state(job["id"]) == S.RESTART_READY
    with pytest.raises(NotFound):
        world.close_session(session)


def test_a_batch_job_that_ends_takes_its_sessions_with_it(world: World) -> None:
    spec = BatchJobSpec(site_id=world.site, num_nodes=1, wall_time_min=10)
    batch_job = world.write(batch_jobs.create_batch_job, world.owner, spec)["id"]
    [job_id] = world.create()
    session = world.open(batch_job_id=batch_job)
    [job] = world.acquire(session)
    world.report(session, world.a_report(job, S.RUNNING))
    assert world.job(job_id)["batch_job_id"] == batch_job
    for state in (BatchJobState.RUNNING, BatchJobState.FINISHED):
        world.write(batch_jobs.patch_batch_job, world.owner, batch_job, BatchJobPatch(state=state))
    assert world.state(job_id) == S.RESTART_READY
    assert "batch job" in _timeout_event(world, job_id)["reason"]
    with pytest.raises(NotFound):
        world.acquire(session)
    with pytest.raises(Conflict, match="finished"):
        world.open(batch_job_id=batch_job)


def test_hooks_get_their_turn_after_the_run(world: World) -> None:
    ids = world.create(*[world.spec(world.hooked)] * 3)
    for job_id in ids:
        world.patch(job_id, state=S.PREPROCESSED)
    session = world.open()
    done, error, timeout = world.acquire(session)
    world.run(session, done)
    world.run(session, error, S.RUN_ERROR)
    world.run(session, timeout, S.RUN_TIMEOUT)
    assert world.states(ids) == [S.RUN_DONE, S.RUN_ERROR, S.RUN_TIMEOUT]
    world.patch(ids[0], state=S.POSTPROCESSED)
    world.patch(ids[1], state=S.RESTART_READY)
    world.patch(ids[2], state=S.FAILED, state_data={"reason": "slow"})
    assert world.states(ids) == [S.JOB_FINISHED, S.RESTART_READY, S.FAILED]
    assert results(world, *ids).keys() == {ids[0], ids[2]}
    assert world.last_event(ids[2])["data"] == {"reason": "slow"}


def test_a_job_that_ended_has_a_result_in_any_case(world: World) -> None:
    ids = world.create(*[world.spec()] * 2)
    world.cancel(ids[0])
    assert results(world, *ids) == {ids[0]: {"ok": False, "error": "the job ended as USER_KILLED", "return_code": None}}
