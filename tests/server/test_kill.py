"""Killing jobs: what waits at once, what a launcher holds when it says that nothing is left or holds it no more."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from balsam_exec.model.errors import IllegalTransition, InvalidRequest, StaleLease
from balsam_exec.model.jobs import Result
from balsam_exec.model.queries import JobQuery
from balsam_exec.server.service import feed, update
from tests.server.http import Http
from tests.server.world import S, World


def test_what_nobody_holds_is_killed_at_once(world: World) -> None:
    parent, staged, timed_out = world.create(world.spec(), *[world.spec(world.hooked)] * 2)
    [child] = world.create(world.spec(parent_ids=[parent]))
    world.patch(timed_out, state=S.PREPROCESSED)
    session = world.open()
    held = {job["id"]: job for job in world.acquire(session)}
    world.run(session, held[timed_out], S.RUN_TIMEOUT)
    world.report(session, world.a_report(held[parent], None))
    ids = [parent, staged, timed_out, child]
    assert world.kill(*ids) == {"killed": ids, "ordered": [], "over": []}
    assert world.states(ids) == [S.USER_KILLED] * 4
    assert world.last_event(parent)["data"] == {"reason": "killed by its owner"}
    assert world.acquire(session) == []


def test_again_it_changes_nothing(world: World) -> None:
    session, [running] = world.started(world.spec())
    finished, failed = world.finished(world.spec()), world.create()
    world.patch(failed[0], state=S.FAILED)
    [waiting] = world.create()
    ids = (running["id"], *finished, *failed, waiting, 4711)
    answer = {"killed": [waiting], "ordered": [running["id"]], "over": [*finished, *failed]}
    assert world.kill(*ids) == answer
    events = world.hops(waiting)
    assert world.kill(*ids) == answer
    assert world.hops(waiting) == events
    assert world.orders(session) == {running["id"]: running["epoch"]}


def test_an_order_holds_until_the_launcher_tells_the_end(world: World) -> None:
    session, [job] = world.started(world.spec())
    world.kill(job["id"])
    for _ in range(2):  # whatever becomes of the answer
        assert world.orders(session) == {job["id"]: job["epoch"]}
    assert world.state(job["id"]) == S.RUNNING
    killed = world.a_report(job, S.USER_KILLED, data={"reason": "killed by its owner", "return_code": -15})
    for _ in range(2):
        world.report(session, killed)
    assert world.hops(job["id"])[-1] == (S.RUNNING, S.USER_KILLED)
    assert world.last_event(job["id"])["data"]["return_code"] == -15
    assert world.job(job["id"])["return_code"] == -15
    assert world.orders(session) == {}
    assert world.kill(job["id"])["killed"] == [job["id"]]


def test_what_was_never_started_is_told_without_having_run(world: World) -> None:
    [job_id] = world.create()
    session = world.open()
    [job] = world.acquire(session)
    assert world.kill(job_id)["ordered"] == [job_id]
    world.report(session, world.a_report(job, S.USER_KILLED))
    assert world.hops(job_id)[-1] == (S.PREPROCESSED, S.USER_KILLED)


def test_what_is_given_back_is_killed(world: World) -> None:
    [job_id] = world.create()
    session = world.open()
    [job] = world.acquire(session)
    world.kill(job_id)
    for _ in range(2):
        world.report(session, world.a_report(job, None))
    assert world.state(job_id) == S.USER_KILLED
    assert world.acquire(world.open()) == []


@pytest.mark.parametrize(
    ("end", "hooked", "comes_to"),
    [
        (S.RUN_DONE, False, S.JOB_FINISHED),
        (S.RUN_ERROR, False, S.FAILED),
        (S.RUN_TIMEOUT, False, S.USER_KILLED),
        (S.RUN_DONE, True, S.USER_KILLED),
        (S.RUN_ERROR, True, S.USER_KILLED),
        (S.RUN_TIMEOUT, True, S.USER_KILLED),
    ],
)
def test_only_an_end_of_its_own_is_before_the_order(world: World, end: S, hooked: bool, comes_to: S) -> None:
    [job_id] = world.create(world.spec(world.hooked if hooked else world.python))
    if hooked:
        world.patch(job_id, state=S.PREPROCESSED)
    session = world.open()
    [job] = world.acquire(session)
    world.kill(job_id)
    for _ in range(2):
        world.run(session, job, end)
    assert world.hops(job_id)[-2:] == [(S.RUNNING, end), (end, comes_to)]


@pytest.mark.parametrize("started", [True, False])
@pytest.mark.parametrize("how", ["closed", "expired"])
def test_what_a_session_was_to_kill_is_killed_when_it_ends(world: World, started: bool, how: str) -> None:
    [job_id] = world.create()
    session = world.open(ttl_sec=10)
    [job] = world.acquire(session)
    if started:
        world.report(session, world.a_report(job, S.RUNNING))
    world.kill(job_id)
    if how == "closed":
        world.close_session(session)
    else:
        world.later(11)
        world.reap()
    assert world.hops(job_id)[-1] == (S.RUNNING if started else S.PREPROCESSED, S.USER_KILLED)
    assert "killed by its owner" in world.last_event(job_id)["data"]["reason"]
    assert world.acquire(world.open()) == []


def test_a_restart_is_a_new_beginning(world: World) -> None:
    session, [job] = world.started(world.spec())
    world.kill(job["id"])
    world.report(session, world.a_report(job, S.USER_KILLED))
    world.patch(job["id"], state=S.RESTART_READY)
    [again] = world.acquire(session)
    assert again["epoch"] > job["epoch"]
    assert world.orders(session) == {}
    with pytest.raises(StaleLease):
        world.report(session, world.a_report(job, S.USER_KILLED))
    world.kill(job["id"])
    assert world.orders(session) == {job["id"]: again["epoch"]}


def test_a_launcher_kills_nothing_unasked(world: World) -> None:
    session, [job] = world.started(world.spec())
    with pytest.raises(IllegalTransition, match="nobody has ordered"):
        world.report(session, world.a_report(job, S.USER_KILLED))


def test_setting_the_state_means_the_same(world: World) -> None:
    session, [job] = world.started(world.spec())
    assert world.patch(job["id"], state=S.USER_KILLED)["state"] == S.RUNNING
    assert world.orders(session) == {job["id"]: job["epoch"]}


def test_failing_what_was_to_be_killed_takes_it_away(world: World) -> None:
    [job_id] = world.create()
    session = world.open()
    [job] = world.acquire(session)
    world.kill(job_id)
    world.patch(job_id, state=S.FAILED)
    assert world.state(job_id) == S.FAILED
    with pytest.raises(StaleLease):
        world.report(session, world.a_report(job, S.USER_KILLED))


def test_all_that_match_and_have_not_ended(world: World) -> None:
    mine = {"tags": {"k": "a"}}
    finished = world.finished(world.spec(**mine))
    session, [running] = world.started(world.spec(**mine))
    waiting = world.create(world.spec(**mine))
    [other] = world.create(world.spec(tags={"k": "b"}))
    answer = world.write(update.kill_matching, world.owner, JobQuery(tags=["k:a"]))
    assert answer == {"killed": waiting, "ordered": [running["id"]], "over": []}
    assert world.states([*finished, other]) == [S.JOB_FINISHED, S.PREPROCESSED]
    assert world.orders(session) == {running["id"]: running["epoch"]}
    for query in (JobQuery(), JobQuery(state=["RUNNING"], limit=1)):
        with pytest.raises(InvalidRequest):
            world.write(update.kill_matching, world.owner, query)


def test_a_killed_job_has_no_result(world: World) -> None:
    [job_id] = world.create(world.spec(world.hooked))
    world.patch(job_id, state=S.PREPROCESSED)
    session = world.open()
    [job] = world.acquire(session)
    world.kill(job_id)
    world.run(session, job, S.RUN_DONE, result=Result(ok=True, value=b"v"))
    assert world.read(feed.results, world.owner, [job_id])[job_id]["ok"] is False


def test_jobs_of_others_are_left_alone(world: World) -> None:
    [job_id] = world.create()
    stranger = world.new_user("eve")
    assert world.write(update.kill_jobs, stranger, [job_id]) == {"killed": [], "ordered": [], "over": []}
    assert world.state(job_id) == S.PREPROCESSED


# --- over HTTP


class Launcher:
    """A launcher that holds one running job."""

    def __init__(self, http: Http) -> None:
        self.http = http
        site = http.ok("POST", "/sites", {"name": f"site{time.monotonic_ns()}"})["id"]
        app = {"site_id": site, "name": "A", "command_template": "true"}
        self.app = http.ok("POST", "/apps", app)["id"]
        self.session = http.ok("POST", "/sessions", {"site_id": site})["id"]
        [created] = http.ok("POST", "/jobs", [{"app_id": self.app, "workdir": "w"}])
        room = {"max_jobs": 1, "max_nodes": 1}
        [self.job] = http.ok("POST", f"/sessions/{self.session}/acquire", room)["jobs"]
        assert self.job["id"] == created["id"]

    def heartbeat(self, **heard: Any) -> Any:
        return self.http.ok("PUT", f"/sessions/{self.session}", heard or None)["kill"]

    def kill(self) -> Any:
        return self.http.ok("POST", "/jobs/kill", {"ids": [self.job["id"]]})


def test_an_order_wakes_a_heartbeat_that_waits(http: Http) -> None:
    launcher = Launcher(http)
    told: list[Any] = []
    start = time.monotonic()
    thread = threading.Thread(target=lambda: told.append(launcher.heartbeat(timeout=25)))
    thread.start()
    assert launcher.kill()["ordered"] == [launcher.job["id"]]
    thread.join(25)
    assert told == [{str(launcher.job["id"]): launcher.job["epoch"]}]
    assert time.monotonic() - start < 20


def test_an_order_that_was_heard_is_not_told_again_at_once(http: Http) -> None:
    launcher = Launcher(http)
    launcher.kill()
    order = launcher.heartbeat()
    start = time.monotonic()
    assert launcher.heartbeat(timeout=0.5, killing=order) == order
    assert time.monotonic() - start >= 0.5
    start = time.monotonic()
    assert launcher.heartbeat(timeout=25, killing={launcher.job["id"]: launcher.job["epoch"] - 1}) == order
    assert time.monotonic() - start < 20


def test_ids_or_filters(http: Http) -> None:
    launcher = Launcher(http)
    [waiting] = http.ok("POST", "/jobs", [{"app_id": launcher.app, "workdir": "w", "tags": {"k": "v"}}])
    assert http.ok("POST", "/jobs/kill", query={"app_id": launcher.app}) == {
        "killed": [waiting["id"]],
        "ordered": [launcher.job["id"]],
        "over": [],
    }
    for body, query in ((None, ()), ({"ids": [1]}, {"app_id": 1}), ({"ids": [0]}, ()), ({}, ())):
        assert http("POST", "/jobs/kill", body, query=query).status == 422
