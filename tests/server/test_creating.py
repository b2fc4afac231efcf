"""Creating jobs: what is refused, where they come to rest, and that a repeated request makes none twice."""

from __future__ import annotations

import pytest

from balsam_exec.model.errors import Conflict, NotFound, ParameterError
from balsam_exec.model.queries import TransferQuery
from balsam_exec.server.service import transfers
from tests.server.world import S, World


def test_a_plain_job_is_runnable_in_one_hop(world: World) -> None:
    [job] = world.created()
    assert job.state is S.PREPROCESSED
    assert world.hops(job.id) == [(S.CREATED, S.PREPROCESSED)]


def test_a_job_waits_for_the_hook_its_app_has(world: World) -> None:
    [job] = world.created(world.spec(world.hooked))
    assert job.state is S.STAGED_IN


def test_ids_ascend_in_the_order_of_the_request(world: World) -> None:
    ids = world.create(*(world.spec(workdir=f"w/{i}") for i in range(50)))
    assert ids == sorted(ids)
    assert [world.job(job_id)["workdir"] for job_id in ids] == [f"w/{i}" for i in range(50)]


def test_all_fields_come_back(world: World) -> None:
    fields = {
        "workdir": "a/b",
        "tags": {"kind": "md", "ü": "ß"},
        "data": {"x": [1, {"y": None}], "big": 2**80},
        "arguments": bytes(range(256)),
        "num_nodes": 3,
        "ranks_per_node": 4,
        "threads_per_rank": 5,
        "threads_per_core": 2,
        "gpus_per_rank": 0.5,
        "node_packing_count": 7,
        "wall_time_min": 8,
        "launch_params": {"cpu_affinity": "none"},
    }
    [job_id] = world.create(world.spec(**fields))
    job = world.job(job_id)
    assert {name: job[name] for name in fields} == fields


def test_the_same_key_answers_the_same_jobs(world: World) -> None:
    first = world.created(world.spec(), world.spec(), key="k", digest=b"1" * 32)
    assert world.created(world.spec(), world.spec(), key="k", digest=b"1" * 32) == first
    assert world.count() == 2


def test_a_key_belongs_to_one_request_of_one_user(world: World) -> None:
    world.create(key="k", digest=b"1" * 32)
    with pytest.raises(Conflict, match="new one"):
        world.create(key="k", digest=b"2" * 32)
    ann = world.owner
    world.settle_in_as("bob")
    assert world.owner != ann
    world.create(key="k", digest=b"2" * 32)


def test_a_refused_request_leaves_its_key_unused(world: World) -> None:
    with pytest.raises(NotFound):
        world.create(world.spec(parent_ids=[10**6]), key="k", digest=b"1" * 32)
    assert world.create(key="k", digest=b"2" * 32)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"parameters": {}}, "missing: x"),
        ({"parameters": {"x": 1, "z": 2}}, "unknown: z"),
        ({"parameters": {"x": 1}, "arguments": b"1"}, "not arguments"),
    ],
)
def test_a_command_app_takes_its_parameters_only(world: World, fields: dict[str, object], problem: str) -> None:
    command = world.app("Echo", command_template="echo {{ x }} {{ y }}", parameters={"x": {}, "y": _optional()})
    assert world.create(world.spec(command, parameters={"x": 1}))
    with pytest.raises(ParameterError, match=problem):
        world.create(world.spec(command, parameters={"x": 1}), world.spec(command, **fields))
    assert world.count() == 1


def _optional() -> dict[str, object]:
    return {"required": False, "default": "d"}


def test_a_python_app_takes_no_parameters(world: World) -> None:
    with pytest.raises(ParameterError, match="job 1 of the request"):
        world.create(world.spec(), world.spec(parameters={"x": 1}))
    assert world.count() == 0


def test_an_unknown_app_is_named(world: World) -> None:
    with pytest.raises(NotFound, match="no app 4711"):
        world.create(world.spec(4711))


def test_children_wait_for_all_their_parents(world: World) -> None:
    done = world.finished(world.spec())
    first, second = world.create(world.spec(), world.spec())
    [child] = world.created(world.spec(parent_ids=[*done, first, second, second]))
    assert child.state is S.AWAITING_PARENTS
    assert world.job(child.id)["parent_ids"] == sorted([*done, first, second])
    session = world.open()
    jobs = {job["id"]: job for job in world.acquire(session)}
    assert set(jobs) == {first, second}
    world.run(session, jobs[first])
    assert world.state(child.id) == S.AWAITING_PARENTS
    world.run(session, jobs[second])
    assert world.state(child.id) == S.PREPROCESSED
    assert world.hops(child.id)[-1] == (S.AWAITING_PARENTS, S.PREPROCESSED)


def test_a_child_of_finished_parents_does_not_wait(world: World) -> None:
    [child] = world.created(world.spec(parent_ids=world.finished(world.spec(), world.spec())))
    assert child.state is S.PREPROCESSED


def test_a_parent_that_runs_again_counts_again(world: World) -> None:
    [parent] = world.finished(world.spec())
    other = world.create()[0]
    [child] = world.create(world.spec(parent_ids=[parent, other]))
    world.patch(parent, state=S.RESTART_READY)
    session = world.open()
    jobs = {job["id"]: job for job in world.acquire(session)}
    world.run(session, jobs[other])
    assert world.state(child) == S.AWAITING_PARENTS
    world.run(session, jobs[parent])
    assert world.state(child) == S.PREPROCESSED


def test_a_parent_must_be_there(world: World) -> None:
    with pytest.raises(NotFound, match="no job 4711 to be a parent"):
        world.create(world.spec(parent_ids=[4711]))


SLOTS = {
    "input": {"direction": "in", "local_path": "in.dat"},
    "output": {"direction": "out", "local_path": "out.dat", "required": False},
}


@pytest.mark.parametrize(
    ("transfers", "problem"),
    [
        ({}, "missing: input"),
        ({"input": "laptop:/x", "more": "laptop:/y"}, "unknown: more"),
        ({"input": "desktop:/x"}, "transfer_locations: laptop"),
        ({"input": "laptop"}, "LOCATION:PATH"),
    ],
)
def test_transfers_fill_the_slots_of_the_app(world: World, transfers: dict[str, str], problem: str) -> None:
    app = world.app("Staged", hooks=["run"], transfers=SLOTS)
    with pytest.raises(ParameterError, match=problem):
        world.create(world.spec(app, transfers=transfers))


def test_a_job_with_transfers_stages(world: World) -> None:
    app = world.app("Staged", hooks=["run"], transfers=SLOTS)
    [job] = world.created(world.spec(app, transfers={"input": "laptop:/x:y", "output": "laptop:/z"}))
    assert job.state is S.READY
    page = world.read(transfers.transfers, world.owner, TransferQuery(job_id=[job.id]))
    shown = {(t["slot"], t["direction"], t["state"], t["remote_path"]) for t in page["results"]}
    assert shown == {("input", "in", "pending", "/x:y"), ("output", "out", "awaiting_job", "/z")}
