"""Jobs that wait for others: what becomes of them when these fail, are restarted, deleted, or are others."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import event

from balsam_exec.model.errors import Conflict, InvalidRequest, NotFound, StaleLease
from balsam_exec.model.jobs import JobBulkPatch, JobPatch, Result
from balsam_exec.model.queries import JobQuery
from balsam_exec.server.migrations import upgrade
from balsam_exec.server.service import feed, update
from balsam_exec.server.service.parents import find_circle
from tests.server.test_schema import downgrade
from tests.server.world import S, World

AGAIN = JobQuery(state=[S.FAILED, S.USER_KILLED])
ERROR = 'Traceback (most recent call last):\n  File "app.py", line 3, in run\nValueError: no such basis'


def child(world: World, *parents: int, **fields: Any) -> int:
    [job_id] = world.create(world.spec(parent_ids=list(parents), **fields))
    return job_id


def chain(world: World, length: int, **fields: Any) -> list[int]:
    """Jobs each of which waits for the one before."""
    [first] = world.create()
    ids = [first]
    for _ in range(length - 1):
        ids.append(child(world, ids[-1], **fields))
    return ids


def fail(world: World, job_id: int) -> None:
    """Run it to its end with an exception."""
    session = world.open()
    [job] = [job for job in world.acquire(session) if job["id"] == job_id]
    result = Result(ok=False, error=ERROR, reason="exception")
    world.run(session, job, S.RUN_ERROR, data={"error": ERROR}, result=result)
    world.close_session(session)


def finish_all(world: World) -> list[int]:
    """Run what is runnable until nothing is; in which order."""
    session, order = world.open(), []
    while jobs := world.acquire(session):
        for job in jobs:
            world.run(session, job)
            order.append(job["id"])
    world.close_session(session)
    return order


def restart(world: World, *ids: int) -> int:
    query = JobQuery(id=list(ids))
    count: int = world.write(update.patch_matching, world.owner, query, JobPatch(state=S.RESTART_READY))
    return count


# --- a parent that fails


def test_all_below_a_failure_fail_at_once_and_name_its_root(world: World) -> None:
    root, middle, last = chain(world, 3)
    fail(world, root)
    assert world.states([root, middle, last]) == [S.FAILED] * 3
    cause = {"job_id": root, "state": "FAILED", "error": "ValueError: no such basis"}
    said = world.last_event(middle)["data"]
    assert said == {"reason": f"its parent {root} is FAILED", "root_cause": cause}
    said = world.last_event(last)["data"]
    assert said == {"reason": f"its parent {middle} failed because job {root} is FAILED", "root_cause": cause}
    assert world.job(last)["root_cause"] == root


def test_who_waits_for_the_result_of_a_descendant_is_told_why(world: World) -> None:
    root, _, last = chain(world, 3)
    fail(world, root)
    result = world.read(feed.results, world.owner, [last])[last]
    assert not result["ok"]
    assert result["reason"] == "parent"
    assert f"job {last} was not run" in result["error"]
    assert result["error"].endswith(f"because job {root} is FAILED: ValueError: no such basis")


@pytest.mark.parametrize("how", ["kill", "cancel", "patch"])
def test_a_killed_parent_fails_its_children(world: World, how: str) -> None:
    root, last = chain(world, 2)
    kill: dict[str, Callable[[], Any]] = {
        "kill": lambda: world.kill(root),
        "cancel": lambda: world.cancel(root),
        "patch": lambda: world.patch(root, state=S.USER_KILLED),
    }
    kill[how]()
    assert world.states([root, last]) == [S.USER_KILLED, S.FAILED]
    assert world.last_event(last)["data"]["root_cause"]["state"] == "USER_KILLED"


def test_a_parent_that_a_launcher_killed_fails_its_children(world: World) -> None:
    session, [job] = world.started(world.spec())
    last = child(world, job["id"])
    world.kill(job["id"])
    assert world.state(last) == S.AWAITING_PARENTS
    world.report(session, world.a_report(job, S.USER_KILLED))
    assert world.state(last) == S.FAILED


def test_run_counts_a_failed_parent_as_done(world: World) -> None:
    [bad, good] = world.create(*[world.spec()] * 2)
    last = child(world, bad, good, on_parent_failure="run")
    world.kill(bad)
    assert world.state(last) == S.AWAITING_PARENTS
    assert finish_all(world) == [good, last]


def test_run_waits_again_for_a_parent_that_is_restarted(world: World) -> None:
    [bad] = world.create()
    last = child(world, bad, on_parent_failure="run")
    world.kill(bad)
    assert world.state(last) == S.PREPROCESSED
    restart(world, bad)
    assert world.state(last) == S.AWAITING_PARENTS
    assert finish_all(world) == [bad, last]


def test_hold_waits_for_ever(world: World) -> None:
    [bad] = world.create()
    held = child(world, bad, on_parent_failure="hold")
    below = child(world, held)
    world.kill(bad)
    assert world.states([held, below]) == [S.AWAITING_PARENTS] * 2
    restart(world, bad)
    assert finish_all(world) == [bad, held, below]


def test_each_job_has_its_own_terms(world: World) -> None:
    [root] = world.create()
    fails, runs, held = (child(world, root, on_parent_failure=how) for how in ("fail", "run", "hold"))
    below = child(world, fails, on_parent_failure="run")
    assert world.job(runs)["on_parent_failure"] == "run"
    world.kill(root)
    assert world.states([fails, runs, held, below]) == [S.FAILED, S.PREPROCESSED, S.AWAITING_PARENTS, S.PREPROCESSED]


def test_a_job_made_after_its_parent_failed_fails_at_once(world: World) -> None:
    root, middle = chain(world, 2)
    fail(world, root)
    session = world.open()
    [late, fine, runs] = world.created(
        world.spec(parent_ids=[middle]), world.spec(), world.spec(parent_ids=[root, middle], on_parent_failure="run")
    )
    assert [late.state, fine.state, runs.state] == [S.FAILED, S.PREPROCESSED, S.PREPROCESSED]
    assert {job["id"] for job in world.acquire(session)} == {fine.id, runs.id}
    cause = {"job_id": root, "state": "FAILED", "error": "ValueError: no such basis"}
    assert world.last_event(late.id)["data"]["root_cause"] == cause
    assert world.job(late.id)["root_cause"] == root
    restart(world, root)
    assert world.state(late.id) == S.AWAITING_PARENTS


def test_the_first_of_several_failures_is_the_one_that_is_told(world: World) -> None:
    a, b = world.create(*[world.spec()] * 2)
    last = child(world, a, b)
    world.kill(b)
    world.kill(a)
    assert world.job(last)["root_cause"] == b
    assert len(world.hops(last)) == 2


def test_what_runs_is_left_alone(world: World) -> None:
    [parent] = world.finished(world.spec())
    last = child(world, parent)
    session = world.open()
    [job] = world.acquire(session)
    world.report(session, world.a_report(job, S.RUNNING))
    restart(world, parent)
    world.kill(parent)
    assert world.state(last) == S.RUNNING
    world.report(session, world.a_report(job, S.RUN_DONE))
    assert world.state(last) == S.JOB_FINISHED


def test_what_times_out_fails_with_a_parent_that_failed_in_the_meantime(world: World) -> None:
    [parent] = world.finished(world.spec())
    last = child(world, parent)
    session = world.open()
    [job] = world.acquire(session)
    world.report(session, world.a_report(job, S.RUNNING))
    restart(world, parent)
    world.kill(parent)
    world.report(session, world.a_report(job, S.RUN_TIMEOUT))
    assert world.hops(last)[-3:] == [
        (S.RUN_TIMEOUT, S.RESTART_READY),
        (S.RESTART_READY, S.AWAITING_PARENTS),
        (S.AWAITING_PARENTS, S.FAILED),
    ]
    world.report(session, world.a_report(job, S.RUN_TIMEOUT))  # the answer was lost: once more, and nothing changes


# --- a parent that is restarted


def test_a_restart_revives_what_failed_for_it(world: World) -> None:
    ids = chain(world, 4)
    fail(world, ids[0])
    restart(world, ids[0])
    assert world.states(ids) == [S.RESTART_READY, *[S.AWAITING_PARENTS] * 3]
    assert world.last_event(ids[1])["data"] == {"reason": f"its parent {ids[0]} is to run again"}
    assert world.job(ids[3])["root_cause"] is None
    assert world.read(feed.results, world.owner, ids) == {}
    assert finish_all(world) == ids


def test_a_restart_leaves_what_failed_by_itself(world: World) -> None:
    root, middle, last = chain(world, 3)
    world.kill(middle)
    world.kill(root)
    restart(world, root)
    assert world.states([root, middle, last]) == [S.RESTART_READY, S.USER_KILLED, S.FAILED]
    restart(world, middle)
    assert world.states([middle, last]) == [S.AWAITING_PARENTS] * 2
    assert finish_all(world) == [root, middle, last]


def test_all_failed_parents_have_to_be_restarted(world: World) -> None:
    a, b = world.create(*[world.spec()] * 2)
    last = child(world, a, b)
    below = child(world, last)
    world.kill(a, b)
    restart(world, a)
    assert world.states([last, below]) == [S.FAILED] * 2
    restart(world, b)
    assert world.states([last, below]) == [S.AWAITING_PARENTS] * 2


def test_a_restart_of_all_keeps_the_order(world: World) -> None:
    ids = chain(world, 5)
    fail(world, ids[0])
    assert restart(world, *ids) == 5
    assert world.states(ids) == [S.RESTART_READY, *[S.AWAITING_PARENTS] * 4]
    assert finish_all(world) == ids
    restart(world, *ids)  # and now that all have finished
    assert world.states(ids) == [S.RESTART_READY, *[S.AWAITING_PARENTS] * 4]
    assert finish_all(world) == ids


def test_a_restart_of_a_child_alone_fails_again(world: World) -> None:
    root, last = chain(world, 2)
    world.kill(root)
    world.patch(last, state=S.RESTART_READY)
    assert world.state(last) == S.FAILED
    assert world.last_event(last)["data"]["reason"] == f"its parent {root} is USER_KILLED"
    world.patch(last, state=S.RESTART_READY, on_parent_failure="run")
    assert world.state(last) == S.RESTART_READY
    assert finish_all(world) == [last]


def test_a_child_that_is_not_held_waits_for_a_parent_that_runs_again(world: World) -> None:
    [parent] = world.finished(world.spec())
    plain, hooked = world.create(world.spec(parent_ids=[parent]), world.spec(world.hooked, parent_ids=[parent]))
    assert world.states([plain, hooked]) == [S.PREPROCESSED, S.STAGED_IN]
    restart(world, parent)
    assert world.states([plain, hooked]) == [S.AWAITING_PARENTS] * 2
    assert finish_all(world) == [parent, plain]
    assert world.state(hooked) == S.STAGED_IN


# --- restart


@pytest.mark.parametrize("end", [S.JOB_FINISHED, S.FAILED, S.USER_KILLED, S.RUN_ERROR, S.RUN_TIMEOUT])
def test_what_has_ended_can_be_restarted(world: World, end: S) -> None:
    app = world.python if end in (S.JOB_FINISHED, S.USER_KILLED, S.FAILED) else world.hooked
    [job_id] = world.create(world.spec(app))
    if app == world.hooked:
        world.patch(job_id, state=S.PREPROCESSED)
    session = world.open()
    [job] = world.acquire(session)
    if end is S.USER_KILLED:
        world.kill(job_id)
        world.report(session, world.a_report(job, S.RUNNING), world.a_report(job, end))
    else:
        reported = {S.JOB_FINISHED: S.RUN_DONE, S.FAILED: S.RUN_ERROR}.get(end, end)
        world.run(session, job, reported)
    assert world.state(job_id) == end
    assert world.patch(job_id, state=S.RESTART_READY)["state"] == S.RESTART_READY
    assert world.last_event(job_id)["data"] == {"retry": 1}
    [again] = world.acquire(session)
    assert again["restarted"]


def test_runs_are_counted_and_retries_are_in_the_events(world: World) -> None:
    [job_id] = world.create()
    session = world.open()
    for _ in range(3):
        [job] = world.acquire(session)
        world.report(session, world.a_report(job, S.RUNNING), world.a_report(job, S.RUN_TIMEOUT))
    world.report(session, world.a_report(world.acquire(session)[0], None))  # given back without a start
    assert world.job(job_id)["num_runs"] == 3
    assert world.last_event(job_id)["data"] == {"retry": 3}


def test_what_ended_before_it_was_prepared_is_prepared_when_it_is_restarted(world: World) -> None:
    hooked, plain = world.create(world.spec(world.hooked), world.spec())
    world.kill(hooked, plain)
    restart(world, hooked, plain)
    assert world.states([hooked, plain]) == [S.STAGED_IN, S.RESTART_READY]
    world.patch(hooked, state=S.PREPROCESSED)
    session = world.open()
    [job] = [job for job in world.acquire(session) if job["id"] == hooked]
    world.run(session, job, S.RUN_TIMEOUT)
    world.patch(hooked, state=S.FAILED)
    restart(world, hooked)
    assert world.state(hooked) == S.RESTART_READY  # it has been, and has run


# --- deletion


def test_a_deleted_parent_fails_what_waits_for_it(world: World) -> None:
    root, middle, last = chain(world, 3)
    world.write(update.delete_job, world.owner, root)
    assert world.states([middle, last]) == [S.FAILED] * 2
    cause = {"job_id": root, "state": "deleted"}
    assert world.last_event(middle)["data"] == {"reason": f"its parent {root} is deleted", "root_cause": cause}
    assert world.last_event(last)["data"]["root_cause"] == cause
    restart(world, middle)  # it has no parents any more
    assert world.states([middle, last]) == [S.RESTART_READY, S.AWAITING_PARENTS]


def test_a_deleted_parent_counts_as_done_for_those_that_run_anyway(world: World) -> None:
    [parent] = world.create()
    last = child(world, parent, on_parent_failure="run")
    world.write(update.delete_job, world.owner, parent)
    assert world.state(last) == S.PREPROCESSED


def test_a_parent_is_not_deleted_while_others_are_held_for_it(world: World) -> None:
    [parent] = world.create()
    held = child(world, parent, on_parent_failure="hold")
    with pytest.raises(Conflict, match=f"job {held} is held for job {parent}"):
        world.write(update.delete_job, world.owner, parent)
    assert world.write(update.delete_matching, world.owner, JobQuery(id=[parent, held])) == 2


def test_what_is_deleted_together_says_nothing_more(world: World) -> None:
    root, middle, last = chain(world, 3)
    assert world.write(update.delete_matching, world.owner, JobQuery(id=[root, last])) == 2
    assert world.state(middle) == S.FAILED
    assert world.hops(last)[-1] == (S.AWAITING_PARENTS, "deleted")


def test_what_failed_for_a_deleted_job_stays_failed(world: World) -> None:
    bad, other = world.create(*[world.spec()] * 2)
    last = child(world, bad, other)
    world.kill(bad, other)
    world.write(update.delete_job, world.owner, bad)
    restart(world, other)
    assert world.state(last) == S.FAILED


# --- other parents, other terms


def test_parents_can_change_until_the_start(world: World) -> None:
    a, b = world.create(*[world.spec()] * 2)
    last = child(world, a)
    assert world.patch(last, parent_ids=[b, b])["parent_ids"] == [b]
    world.kill(a)
    assert world.state(last) == S.AWAITING_PARENTS
    assert world.patch(last, parent_ids=[])["state"] == S.PREPROCESSED
    assert world.patch(last, parent_ids=[b])["state"] == S.AWAITING_PARENTS
    assert finish_all(world) == [b, last]
    assert world.patch(last, parent_ids=[b, a])["state"] == S.JOB_FINISHED


def test_other_parents_revive_what_failed_for_the_old_ones(world: World) -> None:
    bad, good = world.create(*[world.spec()] * 2)
    last = child(world, bad)
    below = child(world, last)
    world.kill(bad)
    world.patch(last, parent_ids=[good])
    assert world.states([last, below]) == [S.AWAITING_PARENTS] * 2
    world.patch(last, parent_ids=[bad, good])
    assert world.states([last, below]) == [S.FAILED] * 2
    assert world.patch(last, parent_ids=[good], state=S.RESTART_READY)["state"] == S.AWAITING_PARENTS


def test_parents_cannot_change_while_a_job_runs(world: World) -> None:
    session, [job] = world.started(world.spec(world.python))
    with pytest.raises(Conflict, match="a launcher holds job"):
        world.patch(job["id"], parent_ids=[])
    [hooked] = world.create(world.spec(world.hooked))
    world.patch(hooked, state=S.PREPROCESSED)
    world.run(session, *world.acquire(session))
    with pytest.raises(Conflict, match="is RUN_DONE"):
        world.patch(hooked, parent_ids=[])


def test_a_circle_is_refused_and_shown(world: World) -> None:
    a, b, c = chain(world, 3)
    with pytest.raises(InvalidRequest, match=rf"circle: .*{a} -> {b} -> {c}") as raised:
        world.patch(a, parent_ids=[c])
    assert raised.value.detail["job_ids"][0] == raised.value.detail["job_ids"][-1]
    with pytest.raises(InvalidRequest, match=f"circle: {b} -> {b}$"):
        world.patch(b, parent_ids=[a, b])
    assert world.job(a)["parent_ids"] == []
    assert world.job(b)["parent_ids"] == [a]
    with pytest.raises(NotFound, match="no job 4711 to be a parent"):
        world.patch(c, parent_ids=[4711])


def test_edges_are_turned_round_in_one_request(world: World) -> None:
    a, b = chain(world, 2)
    patches = [JobBulkPatch(id=a, parent_ids=[b]), JobBulkPatch(id=b, parent_ids=[])]
    assert world.write(update.patch_jobs, world.owner, patches) == 2
    assert world.states([a, b]) == [S.AWAITING_PARENTS, S.PREPROCESSED]
    with pytest.raises(InvalidRequest, match="circle"):
        world.write(update.patch_matching, world.owner, JobQuery(id=[a, b]), JobPatch(parent_ids=[a]))


def test_terms_can_change_while_a_job_waits(world: World) -> None:
    [parent] = world.create()
    last = child(world, parent, on_parent_failure="hold")
    world.kill(parent)
    assert world.patch(last, on_parent_failure="fail")["state"] == S.FAILED
    assert world.patch(last, on_parent_failure="hold")["state"] == S.AWAITING_PARENTS
    assert world.patch(last, on_parent_failure="run")["state"] == S.PREPROCESSED
    assert world.patch(last, on_parent_failure="fail")["state"] == S.FAILED


def test_input_files_are_a_step_of_jobs_with_parents(world: World) -> None:
    [parent] = world.finished(world.spec())
    alone, last = world.create(world.spec(input_files=["*.out"]), world.spec(parent_ids=[parent], input_files=["*"]))
    assert world.states([alone, last]) == [S.PREPROCESSED, S.READY]
    assert world.job(last)["input_files"] == ["*"]
    assert world.patch(last, state=S.STAGED_IN)["state"] == S.PREPROCESSED
    [other] = world.create()
    world.patch(alone, parent_ids=[other])
    assert finish_all(world) == [last, other]
    assert world.state(alone) == S.READY
    world.patch(alone, parent_ids=[])
    assert world.state(alone) == S.PREPROCESSED


def test_an_agent_that_is_at_a_job_which_waits_again_is_too_late(world: World) -> None:
    """Visits of an agent are told apart by the epoch."""
    [parent] = world.finished(world.spec())
    [hooked] = world.create(world.spec(world.hooked, parent_ids=[parent]))

    def epoch() -> int:
        found: int = world.epoch(hooked)
        return found

    first = epoch()
    restart(world, parent)
    finish_all(world)
    assert world.state(hooked) == S.STAGED_IN
    assert epoch() > first


# --- databases of before


def test_the_migration_counts_what_is_there(world: World) -> None:
    """What waits for a failed parent has done so without any terms: it is held."""
    [finished] = world.finished(world.spec())
    bad, good = world.create(*[world.spec()] * 2)
    held = child(world, finished, bad, good, on_parent_failure="hold")
    waiting = child(world, good)
    world.kill(bad)
    downgrade(world.database.engine, "0004")
    upgrade(world.database.engine)
    world.check_invariants()
    assert [world.job(job_id)["on_parent_failure"] for job_id in (held, waiting)] == ["hold", "fail"]
    assert [world.job(job_id)["num_runs"] for job_id in (finished, good)] == [1, 0]
    restart(world, bad)
    assert set(finish_all(world)) == {bad, good, held, waiting}


# --- many


def statements(world: World, work: Callable[[], object]) -> int:
    """How many statements this takes."""
    asked = []
    listener = lambda *args: asked.append(args[2])  # noqa: E731
    event.listen(world.database.engine, "before_cursor_execute", listener)
    try:
        work()
    finally:
        event.remove(world.database.engine, "before_cursor_execute", listener)
    return len(asked)


def test_many_children_cost_as_many_statements_as_one(world: World) -> None:
    a, b = world.create(*[world.spec()] * 2)
    child(world, a)
    world.create(*[world.spec(parent_ids=[b])] * 500)
    few, many = (statements(world, lambda job_id=job_id: world.kill(job_id)) for job_id in (a, b))
    assert world.count(state=["FAILED"]) == 501
    assert many == few
    few, many = (statements(world, lambda job_id=job_id: restart(world, job_id)) for job_id in (a, b))
    assert world.count(state=["AWAITING_PARENTS"]) == 501
    assert many == few


def test_a_long_chain_costs_a_bounded_number_of_statements(world: World) -> None:
    ids = chain(world, 300)
    assert statements(world, lambda: world.kill(ids[0])) < 60
    assert world.count(state=["FAILED"]) == 299
    assert statements(world, lambda: restart(world, ids[0])) < 60
    assert world.count(state=["AWAITING_PARENTS"]) == 299


def test_many_parents_finish_in_a_bounded_number_of_statements(world: World) -> None:
    ids = world.create(*[world.spec()] * 300)
    last = child(world, *ids)
    session = world.open()
    jobs = world.acquire(session, 300)
    reports = [world.a_report(job, state) for job in jobs for state in (S.RUNNING, S.RUN_DONE)]
    assert statements(world, lambda: world.report(session, *reports)) < 20
    assert world.state(last) == S.PREPROCESSED


def test_many_at_once_leave_the_counts_right(world: World) -> None:
    """Each thread ends, restarts, adopts and deletes jobs of one family. What is refused is; nothing is lost."""
    ids = world.create(*[world.spec()] * 6)
    for _ in range(4):
        ids += world.create(*[world.spec(parent_ids=ids[-6:])] * 3, world.spec(parent_ids=ids[-3:]))
    problems: list[BaseException] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        try:
            session = world.open()
            for _ in range(25):
                some = chance.sample(ids, 3)
                with suppress(Conflict, InvalidRequest, NotFound, StaleLease):
                    match chance.randrange(6):
                        case 0:
                            child(world, *some, on_parent_failure=chance.choice(["fail", "run", "hold"]))
                        case 1:
                            world.kill(*some)
                        case 2:
                            world.write(update.patch_matching, world.owner, AGAIN, JobPatch(state=S.RESTART_READY))
                        case 3:
                            world.patch(some[0], parent_ids=some[1:])
                        case 4:
                            for job in world.acquire(session, 3):
                                world.run(session, job, chance.choice([S.RUN_DONE, S.RUN_DONE, S.RUN_ERROR]))
                        case 5 if chance.random() < 0.1:
                            world.write(update.delete_job, world.owner, some[0])
        except BaseException as problem:
            problems.append(problem)
            raise

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert problems == []
    world.check_invariants()


def test_circles_are_found_in_any_graph() -> None:
    chance = random.Random(4)
    for _ in range(300):
        size = chance.randint(1, 12)
        edges = [(chance.randrange(size), chance.randrange(size)) for _ in range(chance.randint(0, 14))]
        circle = find_circle(edges)
        assert bool(circle) == has_circle(size, edges)
        assert set(pairwise(circle)) <= set(edges)
        if circle:
            assert circle[0] == circle[-1]
            assert len(set(circle)) == len(circle) - 1


def has_circle(size: int, edges: list[tuple[int, int]]) -> bool:
    reach = {node: {child for parent, child in edges if parent == node} for node in range(size)}
    for _ in range(size):
        for below in reach.values():
            below.update(*(reach[node] for node in list(below)))
    return any(node in below for node, below in reach.items())
