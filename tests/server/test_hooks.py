"""Jobs that wait for their site: what its agent is given, and what it says of them."""

from __future__ import annotations

import time
from typing import Any

import pytest

from balsam_exec.model.errors import IllegalTransition, NotFound, ParameterError
from balsam_exec.model.hooks import HookQuery, HookReport, Visit
from balsam_exec.model.jobs import JobPatch, Result
from balsam_exec.model.sites import SiteSpec
from balsam_exec.server.service import apps as app_service
from balsam_exec.server.service import feed, hooks, sites, update
from tests.server.http import Http
from tests.server.test_feed import Campaign, in_threads
from tests.server.world import S, World
from tests.support.services import LiveService


def work(world: World, *known: Visit, site: int = 0, limit: int = 100) -> dict[str, Any]:
    query = HookQuery(known=list(known), limit=limit)
    found: dict[str, Any] = world.read(hooks.work, world.owner, site or world.site, query)
    return found


def visits(world: World, *known: Visit, **options: Any) -> list[Visit]:
    found = work(world, *known, **options)["jobs"]
    return [Visit(one["job"]["id"], one["epoch"], S(one["job"]["state"])) for one in found]


def say(world: World, visit: Visit, **patch: Any) -> list[Visit]:
    """The visits that were over."""
    report = HookReport(visit=visit, patch=JobPatch(**patch))
    late: list[Visit] = world.write(hooks.record, world.owner, world.site, [report])["late"]
    return late


def test_only_what_waits_for_the_site_is_given(world: World) -> None:
    plain, hooked = world.create(world.spec(), world.spec(world.hooked))
    [child] = world.create(world.spec(world.hooked, parent_ids=[plain]))
    assert visits(world) == [Visit(hooked, 0, S.STAGED_IN)]
    world.kill(plain, child)
    [ended] = world.finished(world.spec())
    assert world.state(ended) == S.JOB_FINISHED
    assert visits(world) == [Visit(hooked, 0, S.STAGED_IN)]
    other = world.write(sites.create_site, world.owner, SiteSpec(name="there"))["id"]
    assert visits(world, site=other) == []


def test_a_job_with_all_there_is_to_know(world: World) -> None:
    [job] = world.create(world.spec(world.hooked, data={"x": 1}, tags={"a": "b"}, arguments=b"call", workdir="d"))
    [found] = work(world)["jobs"]
    assert found["job"] == world.job(job)
    assert found["job"]["arguments"] == b"call"
    assert found["parents"] == []
    before = found["app_digest"]
    world.app("Hooked", hooks=["run", "preprocess"], python_exe="/other")
    assert work(world)["jobs"][0]["app_digest"] != before


def test_each_hook_in_its_turn(world: World) -> None:
    [job] = world.create(world.spec(world.hooked))
    assert say(world, Visit(job, 0, S.STAGED_IN), state=S.PREPROCESSED, data={"pre": 1}) == []
    session = world.open()
    [leased] = world.acquire(session)
    world.run(session, leased)
    assert visits(world) == [Visit(job, 1, S.RUN_DONE)]
    assert say(world, Visit(job, 1, S.RUN_DONE), state=S.RESTART_READY, state_data={"why": "not yet"}) == []
    assert world.last_event(job)["data"] == {"why": "not yet", "retry": 1}
    for epoch, end in ((2, S.RUN_ERROR), (3, S.RUN_TIMEOUT)):
        world.run(session, world.acquire(session)[0], end)
        assert visits(world) == [Visit(job, epoch, end)]
        say(world, Visit(job, epoch, end), state=S.RESTART_READY)
    world.run(session, world.acquire(session)[0])
    say(world, Visit(job, 4, S.RUN_DONE), state=S.POSTPROCESSED)
    assert world.state(job) == S.JOB_FINISHED
    assert world.job(job)["data"] == {"pre": 1}


def test_what_is_known_is_not_given_again_but_another_visit_is(world: World) -> None:
    first, second = world.create(*[world.spec(world.hooked)] * 2)
    here = [Visit(first, 0, S.STAGED_IN), Visit(second, 0, S.STAGED_IN)]
    assert visits(world, limit=1) == here[:1]
    assert visits(world, here[0]) == here[1:]
    assert visits(world, *here) == []
    say(world, here[0], state=S.PREPROCESSED)
    session = world.open()
    world.run(session, world.acquire(session)[0])
    assert visits(world, *here) == [Visit(first, 1, S.RUN_DONE)], "the agent has not heard yet that its report arrived"


def test_the_known_ones_that_are_over(world: World) -> None:
    first, second, third = world.create(*[world.spec(world.hooked)] * 3)
    known = [Visit(job, 0, S.STAGED_IN) for job in (first, second, third)]
    assert work(world, *known)["over"] == []
    world.kill(first)
    world.write(update.delete_job, world.owner, second)
    assert work(world, *known)["over"] == known[:2]


def test_the_apps_that_have_another_version(world: World) -> None:
    apps = {app: world.read(app_service.app, world.owner, app)["digest"] for app in (world.python, world.hooked)}
    query = HookQuery(apps={**apps, 4711: "gone"})
    assert world.read(hooks.work, world.owner, world.site, query)["outdated"] == []
    world.app("Hooked", hooks=["run", "preprocess"], python_exe="/other")
    assert world.read(hooks.work, world.owner, world.site, query)["outdated"] == [world.hooked]
    owner, site = world.owner, world.site
    world.settle_in_as("bob")
    assert world.read(hooks.work, world.owner, world.site, query)["outdated"] == [], "apps of others are not told of"
    world.owner, world.site = owner, site


def test_what_stands_of_others_is_not_told(world: World) -> None:
    [job] = world.create(world.spec(world.hooked))
    visit = Visit(job, 0, S.STAGED_IN)
    world.settle_in_as("bob")
    assert work(world, visit)["over"] == [visit], "as of a job that does not exist"


def test_an_answer_that_comes_too_late_is_dropped_alone(world: World) -> None:
    killed, again, good = world.create(*[world.spec(world.hooked)] * 3)
    world.kill(killed)
    world.patch(again, state=S.PREPROCESSED)
    session = world.open()
    world.run(session, world.acquire(session)[0], S.RUN_ERROR)
    world.patch(again, state=S.RESTART_READY)
    world.run(session, world.acquire(session)[0], S.RUN_ERROR)
    reports = [
        HookReport(visit=Visit(killed, 0, S.STAGED_IN), patch=JobPatch(state=S.PREPROCESSED)),
        HookReport(visit=Visit(again, 1, S.RUN_ERROR), patch=JobPatch(state=S.FAILED)),
        HookReport(visit=Visit(good, 0, S.STAGED_IN), patch=JobPatch(state=S.PREPROCESSED)),
        HookReport(visit=Visit(4711, 0, S.STAGED_IN), patch=JobPatch(state=S.PREPROCESSED)),
    ]
    late = world.write(hooks.record, world.owner, world.site, reports)["late"]
    assert late == [reports[0].visit, reports[1].visit, reports[3].visit]
    assert world.states([killed, again, good]) == [S.USER_KILLED, S.RUN_ERROR, S.PREPROCESSED]
    assert say(world, reports[2].visit, state=S.PREPROCESSED) == [reports[2].visit], "said again, it changes nothing"
    assert world.state(good) == S.PREPROCESSED


def test_what_cannot_be_is_refused_and_nothing_recorded(world: World) -> None:
    echo = world.app("Echo", command_template="echo {{ x }}", parameters={"x": {}}, hooks=["preprocess"])
    good, bad = world.create(*[world.spec(echo, parameters={"x": "1"})] * 2)
    fine = HookReport(visit=Visit(good, 0, S.STAGED_IN), patch=JobPatch(state=S.PREPROCESSED))
    refusals: list[tuple[JobPatch, type[Exception]]] = [
        (JobPatch(state=S.JOB_FINISHED), IllegalTransition),
        (JobPatch(state=S.PREPROCESSED, parameters={"y": "1"}), ParameterError),
    ]
    for patch, error in refusals:
        wrong = HookReport(visit=Visit(bad, 0, S.STAGED_IN), patch=patch)
        with pytest.raises(error):
            world.write(hooks.record, world.owner, world.site, [fine, wrong])
        assert world.states([good, bad]) == [S.STAGED_IN] * 2


def test_the_result_of_a_job_that_its_hook_fails(world: World) -> None:
    """Whatever it was before: who waits is told that it failed, and why. The failure of a run stands."""
    ids = world.create(*[world.spec(world.hooked)] * 4)
    say(world, Visit(ids[0], 0, S.STAGED_IN), state=S.FAILED, state_data={"hook": "preprocess", "error": "no input"})
    for job in ids[1:]:
        say(world, Visit(job, 0, S.STAGED_IN), state=S.PREPROCESSED)
    session = world.open()
    leased = {job["id"]: job for job in world.acquire(session)}
    world.run(session, leased[ids[1]])
    broken = Result(ok=False, error="exit code 3", reason="exit", return_code=3)
    world.run(session, leased[ids[2]], S.RUN_ERROR, result=broken)
    world.run(session, leased[ids[3]], S.RUN_TIMEOUT)
    for job, state in zip(ids[1:], (S.RUN_DONE, S.RUN_ERROR, S.RUN_TIMEOUT), strict=True):
        say(world, Visit(job, 1, state), state=S.FAILED, state_data={"reason": "so it is"})
    found = world.read(feed.results, world.owner, ids)
    told = [(found[job]["ok"], found[job]["error"], found[job]["reason"]) for job in ids]
    assert told == [
        (False, f"job {ids[0]} failed: hook: preprocess; error: no input", "exit"),
        (False, f"job {ids[1]} failed: reason: so it is", "exit"),
        (False, "exit code 3", "exit"),
        (False, f"job {ids[3]} failed: reason: so it is", "timeout"),
    ]
    world.patch(ids[1], state=S.RESTART_READY)
    world.run(session, world.acquire(session)[0])
    say(world, Visit(ids[1], 2, S.RUN_DONE), state=S.POSTPROCESSED)
    assert world.read(feed.results, world.owner, [ids[1]])[ids[1]]["value"] == b"value"


def test_files_of_parents(world: World) -> None:
    parents = world.create(world.spec(workdir="a"), world.spec(workdir="b"))
    child, plain = world.create(
        world.spec(workdir="c", parent_ids=parents, input_files=["*.dat"]), world.spec(parent_ids=parents)
    )
    assert visits(world) == []
    session = world.open()
    for job in world.acquire(session):
        world.run(session, job)
    assert world.state(plain) == S.PREPROCESSED
    [found] = work(world)["jobs"]
    assert found["job"]["id"] == child
    assert found["job"]["input_files"] == ["*.dat"]
    assert found["parents"] == [
        {"id": parents[0], "site_id": world.site, "workdir": "a"},
        {"id": parents[1], "site_id": world.site, "workdir": "b"},
    ]
    say(world, Visit(child, 0, S.READY), state=S.STAGED_IN)
    assert world.state(child) == S.PREPROCESSED


def test_a_job_that_has_ended_is_at_no_site(world: World) -> None:
    session, [job] = world.started()
    broken = Result(ok=False, error="exit code 3", reason="exit", return_code=3)
    world.report(session, world.a_report(job, S.RUN_ERROR, result=broken))
    visit = Visit(job["id"], world.epoch(job["id"]), S.FAILED)
    assert say(world, visit, state=S.FAILED, state_data={"why": "hook"}) == [visit]
    assert world.read(feed.results, world.owner, [job["id"]])[job["id"]]["error"] == broken.error


def test_someone_elses_site(world: World) -> None:
    site, [job] = world.site, world.create(world.spec(world.hooked))
    world.settle_in_as("bob")
    with pytest.raises(NotFound):
        work(world, site=site)
    report = HookReport(visit=Visit(job, 0, S.STAGED_IN), patch=JobPatch(state=S.FAILED))
    with pytest.raises(NotFound):
        world.write(hooks.record, world.owner, site, [report])
    assert world.write(hooks.record, world.owner, world.site, [report])["late"] == [report.visit]


# --- over HTTP


class Agent:
    """An app with a hook at a site, and what the agent there asks."""

    def __init__(self, http: Http) -> None:
        self.http = http
        self.site = Campaign(http).site
        spec = {"site_id": self.site, "name": "Hooked", "hooks": ["run", "preprocess"], "payload": "AAAA"}
        self.app = http.ok("POST", "/apps", spec)["id"]

    def create(self) -> int:
        found: int = self.http.ok("POST", "/jobs", [{"app_id": self.app, "workdir": "w"}])[0]["id"]
        return found

    def work(self, timeout: float, *known: list[Any]) -> Any:
        return self.http.ok("POST", f"/sites/{self.site}/hooks/work", {"timeout": timeout, "known": list(known)})

    def report(self, *reports: Any) -> Any:
        return self.http.ok("POST", f"/sites/{self.site}/hooks/reports", {"reports": list(reports)})


def test_a_poll_waits_for_a_job_and_for_a_kill(live: LiveService) -> None:
    agent, owner = Agent(Http(live)), Http(live)
    found: list[Any] = []
    started = time.monotonic()

    def poll() -> None:
        found.append(agent.work(50))
        visit = [found[0]["jobs"][0]["job"]["id"], 0, "STAGED_IN"]
        found.append(agent.work(50, visit))

    def act() -> None:
        job = agent.create()
        while not found:
            time.sleep(0.01)
        owner.ok("POST", "/jobs/kill", {"ids": [job]})

    in_threads(poll, act)
    assert time.monotonic() - started < 40
    job = found[0]["jobs"][0]["job"]
    assert job["state"] == "STAGED_IN"
    assert found[1] == {"jobs": [], "over": [[job["id"], 0, "STAGED_IN"]], "outdated": []}


def test_a_poll_waits_for_another_version(live: LiveService) -> None:
    agent, owner = Agent(Http(live)), Http(live)
    digest = owner.ok("GET", f"/apps/{agent.app}")["digest"]
    found: list[Any] = []
    path = f"/sites/{agent.site}/hooks/work"
    started = time.monotonic()

    def poll() -> None:
        found.append(agent.http.ok("POST", path, {"timeout": 50, "apps": {str(agent.app): digest}}))

    def act() -> None:
        spec = {"site_id": agent.site, "name": "Hooked", "hooks": ["run", "preprocess"], "payload": "BBBB"}
        owner.ok("PUT", "/apps", spec)

    in_threads(poll, act)
    assert time.monotonic() - started < 40
    assert found == [{"jobs": [], "over": [], "outdated": [agent.app]}]


def test_a_report_over_http(live: LiveService) -> None:
    agent = Agent(Http(live))
    job = agent.create()
    visit = [job, 0, "STAGED_IN"]
    said = {"visit": visit, "patch": {"state": "PREPROCESSED", "data": {"x": [1]}}}
    assert agent.report(said) == {"late": []}
    assert agent.report(said) == {"late": [visit]}
    assert agent.http.ok("GET", f"/jobs/{job}")["data"] == {"x": [1]}
    assert agent.work(0) == {"jobs": [], "over": [], "outdated": []}
