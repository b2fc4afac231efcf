"""Why a job is where it is: each cause on a real database, and the properties of the pure part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balsam_exec.model.batch_jobs import BatchJobPatch, BatchJobSpec
from balsam_exec.model.errors import NotFound
from balsam_exec.model.explain import Cause, Explanation
from balsam_exec.model.jobs import Result
from balsam_exec.model.sessions import Room, SessionSpec
from balsam_exec.model.sites import SitePatch
from balsam_exec.model.states import RUNNABLE, BatchJobState, JobState, Step
from balsam_exec.model.transfers import TransferPatch, TransferState
from balsam_exec.server.service import batch_jobs, explain, reasons, sessions, sites, transfers
from balsam_exec.server.service.facts import Facts, Happened, Lease
from balsam_exec.server.service.places import Demand, Place, fits, obstacles
from balsam_exec.server.service.reasons import explain as decide
from balsam_exec.server.store.types import moment
from tests.server.http import Http
from tests.server.world import S, World

B = BatchJobState
TAGS = st.dictionaries(st.sampled_from("ab"), st.sampled_from("xy"), max_size=2)
ROOMS = st.builds(
    Room,
    max_nodes=st.integers(1, 3),
    max_gpus_per_node=st.sampled_from([0.0, 1.0, 4.0]),
    serial_only=st.booleans(),
    filter_tags=TAGS,
)
SPECS = st.fixed_dictionaries(
    {
        "num_nodes": st.integers(1, 3),
        "ranks_per_node": st.integers(1, 3),
        "gpus_per_rank": st.sampled_from([0.0, 0.25, 1.0]),
        "wall_time_min": st.integers(0, 90),
        "tags": TAGS,
    }
)


def why(world: World, job_id: int) -> Explanation:
    """The explanation, which tells of that job as it is."""
    found = Explanation.model_validate(world.read(explain.explain, world.owner, job_id, world.now))
    assert found.job_id == job_id
    assert found.state == world.state(job_id)
    assert found.summary == str(found) == f"job {job_id} is {found.state}: " + "; ".join(r.text for r in found.reasons)
    assert "\n" not in found.summary
    return found


def codes(found: Explanation) -> list[str]:
    return [reason.code for reason in found.reasons]


def heard(world: World) -> None:
    """The site's agent gives a sign of life."""
    world.write(sites.patch_site, world.owner, world.site, SitePatch(refresh=True))


def allocation(world: World, *states: BatchJobState, **spec: Any) -> int:
    """A batch job that went through the states."""
    wanted = BatchJobSpec(**{"site_id": world.site, "num_nodes": 1, "wall_time_min": 60, **spec})
    made: int = world.write(batch_jobs.create_batch_job, world.owner, wanted)["id"]
    for state in states:
        start = moment(world.now) if state is B.RUNNING else None
        patch = BatchJobPatch(state=state, start_time=start)
        world.write(batch_jobs.patch_batch_job, world.owner, made, patch)
    return made


def launcher(world: World, **spec: Any) -> int:
    """A running allocation whose launcher is there; its id."""
    made = allocation(world, B.RUNNING, **spec)
    world.open(batch_job_id=made, ttl_sec=3600)
    return made


# --- before it may run


def test_it_waits_for_parents(world: World) -> None:
    _, [running] = world.started(world.spec())
    [waiting] = world.create()
    finished = world.finished(world.spec())
    [child] = world.create(world.spec(parent_ids=[running["id"], waiting, *finished]))
    found = why(world, child)
    assert codes(found) == [Cause.PARENTS_PENDING]
    text = f"2 of its 3 parents have yet to finish: {running['id']} (RUNNING), {waiting} (PREPROCESSED)"
    assert found.reasons[0].text == text
    states = {"RUNNING": 1, "PREPROCESSED": 1}
    assert found.reasons[0].detail == {"parents": 3, "states": states, "ids": [running["id"], waiting]}


def test_of_many_parents_some_are_named(world: World) -> None:
    parents = world.create(*[world.spec()] * 30)
    [child] = world.create(world.spec(parent_ids=parents))
    [reason] = why(world, child).reasons
    assert reason.text.startswith("all its 30 parents have yet to finish: ")
    assert reason.text.endswith(f"{parents[9]} (PREPROCESSED) and 20 more")


def test_a_parent_failed_and_it_holds(world: World) -> None:
    failed, waiting = world.create(*[world.spec()] * 2)
    parents = [failed, waiting]
    [holds] = world.create(world.spec(parent_ids=parents, on_parent_failure="hold"))
    [runs] = world.create(world.spec(parent_ids=parents, on_parent_failure="run"))
    [fails] = world.create(world.spec(parent_ids=parents))
    world.patch(failed, state=S.FAILED, state_data={"error": "no water"})
    found = why(world, holds)
    assert codes(found) == [Cause.PARENT_FAILED, Cause.PARENTS_PENDING]
    assert found.reasons[0].text == f"1 of its 2 parents has ended without success: {failed} (FAILED)"
    assert codes(why(world, runs)) == [Cause.PARENTS_PENDING]
    found = why(world, fails)
    assert codes(found) == [Cause.PARENT_FAILED]
    assert found.reasons[0].text == f"its parent {failed} is FAILED"
    assert found.reasons[0].detail["root_cause"] == {"job_id": failed, "state": "FAILED", "error": "no water"}


def test_it_waits_for_its_parents_files(world: World) -> None:
    [parent] = world.finished(world.spec())
    [job] = world.create(world.spec(parent_ids=[parent], input_files=["*.out"]))
    heard(world)
    [reason] = why(world, job).reasons
    assert reason.code == Cause.INPUT_FILES_PENDING
    world.patch(job, state=S.FAILED, state_data={"hook": "input_files", "error": "two files are named x.out"})
    [reason] = why(world, job).reasons
    assert reason.text == "its files could not be copied from its parents 0 s ago: two files are named x.out"


def test_it_waits_for_a_hook(world: World) -> None:
    first, second = world.create(*[world.spec(world.hooked)] * 2)
    heard(world)
    world.later(5)
    [reason] = why(world, first).reasons
    assert reason.code == Cause.HOOK_PENDING
    assert reason.text == "site here is yet to run preprocess of Hooked (for 5 s), as is the case for 1 other job"
    assert reason.detail == {"hook": "preprocess", "jobs": 2}
    world.later(3 * 3600)
    found = why(world, second)
    assert codes(found) == [Cause.HOOK_PENDING, Cause.AGENT_AWAY]
    assert "the agent of site here was last heard of 3 h ago, at 2023-" in found.summary


def test_an_agent_that_was_never_heard_of(world: World) -> None:
    [job] = world.create(world.spec(world.hooked))
    assert "the agent of site here was never heard of" in why(world, job).summary


def test_it_waits_for_transfers(world: World) -> None:
    slots = {name: {"direction": "in", "local_path": name} for name in ("a", "b")}
    app = world.app("Staging", command_template="true", transfers=slots)
    [job] = world.create(world.spec(app, transfers={"a": "laptop:/a", "b": "laptop:/b"}))
    heard(world)
    [reason] = why(world, job).reasons
    assert reason.code == Cause.TRANSFERS_PENDING
    assert reason.text == "2 transfers to stage in are not done yet (0 active)"
    patch = TransferPatch(state=TransferState.FAILED, transfer_info={"error": "no such file"})
    world.write(transfers.patch_transfer, world.owner, 1, TransferPatch(state=TransferState.ACTIVE))
    world.write(transfers.patch_transfer, world.owner, 1, patch)
    found = why(world, job)
    assert codes(found) == [Cause.TRANSFER_FAILED, Cause.TRANSFERS_PENDING]
    assert found.reasons[0].text == "1 transfer to stage in failed: 1 (no such file)"


# --- runnable


def test_no_allocation(world: World) -> None:
    [job] = world.create()
    heard(world)
    [reason] = why(world, job).reasons
    assert reason.code == Cause.NO_ALLOCATION
    assert reason.detail == {"running": 0, "queued": 0}
    assert "balsam queue submit --site here" in reason.text


def test_allocations_that_are_queued(world: World) -> None:
    [job] = world.create(world.spec(num_nodes=4))
    heard(world)
    small = allocation(world, B.QUEUED, num_nodes=2)
    found = why(world, job)
    assert codes(found) == [Cause.NO_ALLOCATION, Cause.ALLOCATION_QUEUED]
    assert found.reasons[1].text == "1 allocation is queued, and it fits in none (too_few_nodes)"
    large = allocation(world, num_nodes=4)
    found = why(world, job)
    assert found.reasons[1].detail == {"queued": 2, "fitting": 1, "unsubmitted": 1}
    assert f"it may run in batch job {large}; 1 of them is yet to be submitted" in found.summary
    world.later(600)
    assert codes(why(world, job))[-1] == Cause.AGENT_AWAY
    world.write(batch_jobs.patch_batch_job, world.owner, small, BatchJobPatch(state=B.RUNNING))
    assert Cause.LAUNCHER_STARTING in codes(why(world, job))


@pytest.mark.parametrize(
    ("wanted", "offered", "cause", "text"),
    [
        ({"num_nodes": 4}, {"num_nodes": 2}, Cause.TOO_FEW_NODES, "it needs 4 nodes, and {who} has 2"),
        (
            {"wall_time_min": 60},
            {"wall_time_min": 30},
            Cause.TIME_TOO_SHORT,
            "it needs 60 min, and {who} has 29 min left",
        ),
        (
            {"ranks_per_node": 3},
            {"job_mode": "serial"},
            Cause.SERIAL_ONLY,
            "it has 3 ranks, and {who} runs in serial mode, which is for jobs of one rank",
        ),
        (
            {"tags": {"kind": "md"}},
            {"filter_tags": {"kind": "qm", "n": "1"}},
            Cause.TAGS_EXCLUDE_IT,
            "{who} takes only jobs with the tags kind=qm n=1, and it has kind=md",
        ),
    ],
)
def test_it_does_not_fit(
    world: World, wanted: dict[str, Any], offered: dict[str, Any], cause: Cause, text: str
) -> None:
    [job] = world.create(world.spec(**wanted))
    made = launcher(world, **offered)
    [reason] = why(world, job).reasons
    assert reason.code == cause
    assert reason.text == text.format(who=f"the running allocation (batch job {made})")
    launcher(world, **offered)
    found = why(world, job)
    assert codes(found) == [cause]
    assert found.reasons[0].detail["allocations"] == found.reasons[0].detail["of"] == 2
    assert "the 2 running allocations" in found.summary
    launcher(world, num_nodes=9, wall_time_min=900)
    assert codes(why(world, job)) == [Cause.BUSY], "that one is large enough"


def test_launchers_of_one_allocation_are_told_apart(world: World) -> None:
    made = allocation(world, B.RUNNING, num_nodes=8)
    for nodes, gpus in ((3, 0), (3, 0), (2, 4)):
        spec = SessionSpec(
            site_id=world.site, batch_job_id=made, room=Room(max_nodes=nodes, max_gpus_per_node=gpus), ttl_sec=3600
        )
        world.write(sessions.open_session, world.owner, spec)
    [fits, wide, neither] = world.create(
        *(world.spec(num_nodes=n, gpus_per_rank=g) for n, g in ((1, 0), (4, 0), (3, 1)))
    )
    assert f"with the launchers of batch job {made}" in why(world, fits).summary
    assert "the 3 launchers have at most 3" in why(world, wide).summary
    assert f"2 of 3 launchers (batch job {made}) have at most 0" in why(world, neither).summary


def test_what_a_launcher_says_of_itself_counts(world: World) -> None:
    [job] = world.create(world.spec(ranks_per_node=2, gpus_per_rank=1.5))
    made = allocation(world, B.RUNNING, num_nodes=8)
    spec = SessionSpec(site_id=world.site, batch_job_id=made, room=Room(max_nodes=1, max_gpus_per_node=2))
    world.write(sessions.open_session, world.owner, spec)
    [reason] = why(world, job).reasons
    assert reason.code == Cause.TOO_FEW_GPUS
    assert reason.text == f"it needs 3 GPUs on a node, and the running allocation (batch job {made}) has 2"
    [large] = world.create(world.spec(num_nodes=2))
    assert codes(why(world, large)) == [Cause.TOO_FEW_NODES]


@settings(deadline=None, max_examples=50)  # each writes to a database
@given(data=st.data())
def test_what_a_launcher_is_given_is_what_is_said_to_fit(property_world: World, data: st.DataObject) -> None:
    """`obstacles` says in Python what `acquire` asks in SQL."""
    world = property_world
    world.empty()
    room = data.draw(ROOMS)
    minutes = data.draw(st.integers(1, 90))
    wanted = data.draw(st.lists(SPECS, min_size=1, max_size=5))
    jobs = world.create(*(world.spec(**fields) for fields in wanted))
    made = allocation(world, B.RUNNING, wall_time_min=minutes)
    spec = SessionSpec(site_id=world.site, batch_job_id=made, room=room)
    session = world.write(sessions.open_session, world.owner, spec)["id"]
    said = {job for job in jobs if codes(why(world, job)) == [Cause.BUSY]}
    given = world.acquire(session, max_wall_time_min=minutes - 1, **room.model_dump())
    assert {job["id"] for job in given} == said


@pytest.fixture(scope="module")
def property_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(f"sqlite:///{tmp_path_factory.mktemp('property') / 'b.db'}")
    yield world
    world.close()


def test_what_stands_in_the_way_most_comes_first(world: World) -> None:
    [job] = world.create(world.spec(num_nodes=4, tags={"kind": "md"}))
    launcher(world, num_nodes=8, filter_tags={"kind": "qm"})
    launcher(world, num_nodes=1, filter_tags={"kind": "qm"})
    found = why(world, job)
    assert codes(found) == [Cause.TAGS_EXCLUDE_IT, Cause.TOO_FEW_NODES]
    assert found.reasons[1].detail == {"needs": 4, "most": 1, "allocations": 1, "of": 2}


def test_all_are_busy(world: World) -> None:
    longer = world.create(*[world.spec(wall_time_min=9)] * 2)
    [job] = world.create()
    made = allocation(world, B.RUNNING)
    session = world.open(batch_job_id=made)
    world.acquire(session, max_jobs=1)
    found = why(world, job)
    assert codes(found) == [Cause.BUSY]
    assert found.reasons[0].detail == {"ahead": 1, "held": 1, "allocations": 1}
    text = f"1 job of its site is before it, and 1 job is with the launcher of batch job {made}"
    assert found.reasons[0].text == text
    assert "it is the next" in why(world, longer[1]).summary


def test_of_very_many_jobs_not_all_are_counted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reasons, "MANY", 2)
    *_, third, last = world.create(*[world.spec()] * 4)
    world.open()
    assert why(world, third).reasons[0].text.startswith("2 jobs of its site are before it, and 0 jobs are with")
    assert why(world, last).reasons[0].text.startswith("more than 2 jobs of its site are before it")


def test_a_session_that_expired_is_none(world: World) -> None:
    [job] = world.create()
    world.open(ttl_sec=10)
    assert codes(why(world, job)) == [Cause.BUSY]
    world.later(11)
    assert codes(why(world, job)) == [Cause.NO_ALLOCATION]


# --- with a launcher


def test_a_launcher_has_it(world: World) -> None:
    [job] = world.create()
    made = allocation(world, B.RUNNING)
    session = world.open(batch_job_id=made)
    [leased] = world.acquire(session)
    assert codes(why(world, job)) == [Cause.ASSIGNED]
    world.report(session, world.a_report(leased, S.RUNNING))
    world.later(30)
    found = why(world, job)
    assert codes(found) == [Cause.RUNNING]
    assert found.reasons[0].text == f"it runs, begun 30 s ago, in batch job {made} at site here"
    world.kill(job)
    world.later(15)
    found = why(world, job)
    assert codes(found) == [Cause.KILL_ORDERED, Cause.LAUNCHER_SILENT, Cause.RUNNING]
    assert "its launcher was last heard of 45 s ago; in 15 s it will be free for others" in found.summary


# --- ended


def test_it_finished(world: World) -> None:
    [job] = world.finished(world.spec())
    world.later(10)
    [reason] = why(world, job).reasons
    assert reason.code == Cause.FINISHED
    assert reason.text == "it finished 10 s ago, after a run of 0 s in a launcher without a batch job"


def test_its_run_failed(world: World) -> None:
    session, [job] = world.started(world.spec())
    error = "exit code 3\nabout to begin\nno such input: water.xyz"
    result = Result(ok=False, error=error, return_code=3)
    world.report(session, world.a_report(job, S.RUN_ERROR, data={"error": error, "return_code": 3}, result=result))
    world.later(4)
    [reason] = why(world, job["id"]).reasons
    assert reason.code == Cause.RUN_FAILED
    assert reason.text == "its run failed 4 s ago: exit code 3: no such input: water.xyz"
    assert reason.detail["error"] == error
    assert reason.detail["return_code"] == 3
    world.patch(job["id"], state=S.RESTART_READY)
    found = why(world, job["id"])
    assert codes(found) == [Cause.BUSY, Cause.RESTARTED]
    assert found.reasons[1].text == "it was FAILED before (exit code 3: no such input: water.xyz), and is to run again"


def test_a_traceback_is_told_by_its_end(world: World) -> None:
    session, [job] = world.started(world.spec())
    error = 'Traceback (most recent call last):\n  File "x.py", line 1\nValueError: too cold'
    world.report(session, world.a_report(job, S.RUN_ERROR, data={"error": error}, result=Result(ok=False, error=error)))
    assert why(world, job["id"]).summary.endswith("its run failed 0 s ago: ValueError: too cold")


def test_a_hook_failed_it(world: World) -> None:
    _, job = _in_state(world, S.RUN_ERROR)
    world.patch(job, state=S.FAILED, state_data={"error": "Traceback (most recent call last):\nKeyError: 'x'"})
    found = why(world, job)
    assert codes(found) == [Cause.RUN_FAILED, Cause.HOOK_FAILED]
    assert found.reasons[1].text == "handle_error of Hooked failed it 0 s ago: KeyError: 'x'"
    [staged] = world.create(world.spec(world.hooked))
    world.patch(staged, state=S.FAILED, state_data={"error": "no input"})
    assert why(world, staged).reasons[0].text == "preprocess of Hooked failed it 0 s ago: no input"


def test_an_error_waits_for_its_hook(world: World) -> None:
    _, job = _in_state(world, S.RUN_ERROR)
    heard(world)
    found = why(world, job)
    assert codes(found) == [Cause.HOOK_PENDING, Cause.RUN_FAILED]
    assert "site here is yet to run handle_error of Hooked" in found.summary


def test_somebody_set_it_to_failed(world: World) -> None:
    [job] = world.create()
    world.patch(job, state=S.FAILED)
    assert codes(why(world, job)) == [Cause.SET_FAILED]


def test_it_was_killed(world: World) -> None:
    [job] = world.create()
    world.kill(job)
    [reason] = why(world, job).reasons
    assert (reason.code, reason.text) == (Cause.KILLED, "killed by its owner 0 s ago")


def test_its_allocation_ended(world: World) -> None:
    [job] = world.create()
    made = allocation(world, B.RUNNING)
    session = world.open(batch_job_id=made)
    [leased] = world.acquire(session)
    world.report(session, world.a_report(leased, S.RUNNING))
    world.write(batch_jobs.patch_batch_job, world.owner, made, BatchJobPatch(state=B.FINISHED))
    found = why(world, job)
    assert codes(found) == [Cause.NO_ALLOCATION, Cause.RESTARTED]
    assert f"it was RUN_TIMEOUT before (its batch job {made} ended: finished)" in found.summary


def _in_state(world: World, end: JobState) -> tuple[int, int]:
    """A job of the app with every hook, run to that end."""
    [job] = world.create(world.spec(world.hooked))
    world.patch(job, state=S.PREPROCESSED)
    session = world.open()
    [leased] = world.acquire(session)
    world.run(session, leased, end, data={"return_code": 1})
    return session, job


# --- over HTTP


def test_the_route(http: Http) -> None:
    site = http.ok("POST", "/sites", {"name": "far"})["id"]
    app = http.ok("POST", "/apps", {"site_id": site, "name": "A", "command_template": "true"})["id"]
    [job] = http.ok("POST", "/jobs", [{"app_id": app, "workdir": "w"}])
    found = http.ok("GET", f"/jobs/{job['id']}/explain")
    assert found["state"] == "PREPROCESSED"
    assert found["reasons"][0]["code"] == "no_allocation"
    assert found["summary"].startswith(f"job {job['id']} is PREPROCESSED: no launcher runs at site far")
    assert http("GET", "/jobs/4711/explain").status == 404


def test_of_others_nothing_is_told(world: World) -> None:
    [job] = world.create()
    stranger = world.new_user("bob")
    with pytest.raises(NotFound):
        world.read(explain.explain, stranger, job, world.now)


# --- properties

NOW = datetime.fromisoformat("2026-01-01T00:00:00+00:00")
DEMANDS = st.builds(
    Demand,
    nodes=st.integers(1, 4),
    ranks_per_node=st.integers(1, 3),
    gpus_per_node=st.sampled_from([0.0, 0.5, 1.0, 4.0]),
    minutes=st.integers(0, 90),
    tags=TAGS,
)
PLACES = st.builds(
    Place,
    name=st.just("batch job 1"),
    nodes=st.none() | st.integers(1, 4),
    gpus_per_node=st.none() | st.sampled_from([0.0, 1.0, 4.0]),
    minutes=st.none() | st.integers(0, 90),
    serial_only=st.booleans(),
    filter_tags=TAGS,
    held=st.integers(0, 5),
)
MOMENTS = st.integers(0, 10**6).map(lambda seconds: NOW - timedelta(seconds=seconds))
STATES = st.sampled_from(sorted(set(JobState) - {S.CREATED}))
ANYTHING = st.builds(
    Facts,
    now=st.just(NOW),
    job_id=st.just(7),
    state=STATES,
    steps=st.integers(0, 127).map(Step),
    demand=DEMANDS,
    agent_heard=st.none() | MOMENTS,
    changed=MOMENTS,
    batch_job_id=st.none() | st.just(3),
    lease=st.none()
    | st.builds(Lease, batch_job_id=st.none(), heard=MOMENTS, expires=MOMENTS, kill_ordered=st.booleans()),
    parents=st.dictionaries(STATES, st.integers(1, 9), max_size=3),
    transfers=st.lists(st.tuples(st.integers(1), st.sampled_from(list(TransferState)), st.just("")), max_size=2),
    queue=st.integers(0, 3),
    places=st.lists(PLACES, max_size=4),
    starting=st.lists(PLACES, max_size=2),
    queued=st.lists(PLACES, max_size=2),
    ahead=st.integers(0, 3),
    history=st.lists(
        st.builds(
            Happened, STATES, STATES, MOMENTS, st.dictionaries(st.sampled_from(["error", "return_code"]), st.text())
        ),
        max_size=5,
    ),
)  # fmt: skip


@given(ANYTHING)
def test_there_is_always_an_explanation(facts: Facts) -> None:
    found = decide(facts)
    assert found.reasons
    assert len(found.summary.splitlines()) == 1
    assert all(reason.text and reason.code in set(Cause) for reason in found.reasons)


def test_a_failure_that_nobody_explained_is_one_all_the_same() -> None:
    demand = Demand(nodes=1, ranks_per_node=1, gpus_per_node=0, minutes=0, tags={})
    assert codes(decide(Facts(now=NOW, job_id=1, state=S.FAILED, demand=demand))) == [Cause.SET_FAILED]


@given(ANYTHING, st.sampled_from(sorted(RUNNABLE)))
def test_a_runnable_job_is_told_the_truth_about_launchers(facts: Facts, state: JobState) -> None:
    facts = replace(facts, state=state, lease=None)
    told = set(codes(decide(facts))) - {Cause.RESTARTED}
    some_fits = any(fits(facts.demand, place) for place in facts.places)
    assert (told == {Cause.BUSY}) == some_fits, "a launcher that fits is all there is to say"
    assert (Cause.NO_ALLOCATION in told) == (not facts.places)
    in_the_way = set().union(*(obstacles(facts.demand, place) for place in facts.places))
    if not some_fits:
        assert in_the_way <= told, "all that holds is told"
        assert told <= in_the_way | {
            Cause.NO_ALLOCATION,
            Cause.LAUNCHER_STARTING,
            Cause.ALLOCATION_QUEUED,
            Cause.AGENT_AWAY,
        }
