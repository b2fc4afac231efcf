"""`balsam job modify` and `balsam job retry`."""

from __future__ import annotations

import pytest
import typer

from balsam_exec.cli.changes import FIELDS, OBJECTS, parse
from balsam_exec.model.apps import AppRecord
from balsam_exec.model.jobs import JobPatch
from balsam_exec.model.sites import SiteRecord
from balsam_exec.model.states import JobState
from tests.cli.conftest import Balsam
from tests.cli.test_jobs import create, run_one


def test_every_field_of_a_patch_can_be_set() -> None:
    assert set(FIELDS) == set(JobPatch.model_fields) - {"arguments"}, "arguments are Python's own"


def test_modify_the_named(balsam: Balsam, hello: AppRecord) -> None:
    one, two, other = (create(balsam, f"w{i}", "--tag", "kind=small") for i in range(3))
    changes = [
        "num_nodes=4",
        "gpus_per_rank=0.5",
        "tags.kind=large",
        "tags.n=1",
        "parameters.greeting=a=b",
        "data.x=[1]",
    ]
    assert balsam("job", "modify", one, two, *(part for change in changes for part in ("--set", change))) == "2\n"
    for job in map(balsam.service.job, (one, two)):
        assert (job.num_nodes, job.gpus_per_rank) == (4, 0.5)
        assert job.tags == {"kind": "large", "n": "1"}
        assert job.parameters == {"name": "you", "greeting": "a=b"}
        assert job.data == {"x": [1]}
    assert balsam.service.job(other).tags == {"kind": "small"}
    assert balsam.json("job", "modify", one, "--set", 'tags={"only": "this"}', "--set", "workdir=else") == {"count": 1}
    assert balsam.service.job(one).tags == {"only": "this"}
    assert balsam.service.job(one).workdir == "else"


def test_modify_the_chosen(balsam: Balsam, hello: AppRecord) -> None:
    one, two = (create(balsam, f"w{i}", "--tag", f"n={i}") for i in range(2))
    assert "give --yes" in balsam.fails("job", "modify", "--tag", "n=1", "--set", "wall_time_min=7", code=2)
    assert balsam("job", "modify", "--tag", "n:1", "--set", "wall_time_min=7", "--yes") == "1\n"
    assert balsam("job", "modify", "--tag", "n:1", "--set", "tags.kind=x", "--yes") == "1\n"
    assert balsam.service.job(one).wall_time_min == 0
    assert balsam.service.job(two).wall_time_min == 7
    assert balsam.service.job(two).tags == {"n": "1", "kind": "x"}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--set", "num_nodes"], 2, "is not FIELD=VALUE"),
        (["--set", "=4"], 2, "is not FIELD=VALUE"),
        (["--set", "tags.=4"], 2, "is not FIELD=VALUE"),
        (["--set", "nodes=4"], 2, "'nodes' cannot change; possible: state, workdir,"),
        (["--set", "num_nodes.x=4"], 2, "'num_nodes.x' cannot change"),
        (["--set", "num_nodes=many"], 2, "num_nodes: "),
        (["--set", "tags=kind"], 2, "is no JSON object"),
        (["--set", "input_files=*.out"], 2, "is no JSON list"),
        (["--set", "state=RUNNING"], 1, "only launcher may move a job from PREPROCESSED to RUNNING"),
        ([], 2, "--set"),
    ],
)
def test_modify_refuses(balsam: Balsam, hello: AppRecord, arguments: list[str], code: int, message: str) -> None:
    job = create(balsam, "w")
    told = balsam.fails("job", "modify", job, *arguments, code=code)
    assert message in " ".join(told.split())
    assert balsam.service.job(job).num_nodes == 1


def test_modify_says_which_jobs_are_not_there(balsam: Balsam, hello: AppRecord) -> None:
    job = create(balsam, "w")
    for change in ("num_nodes=2", "tags.a=b"):
        assert "there is no job 4711" in balsam.fails("job", "modify", job, 4711, "--set", change)
    assert balsam.service.job(job).num_nodes == 1
    assert "say which jobs" in balsam.fails("job", "modify", "--set", "num_nodes=2", "--yes", code=2)


def test_retry(balsam: Balsam, site: SiteRecord, hello: AppRecord) -> None:
    first, second = create(balsam, "a", "--tag", "k=v"), create(balsam, "b", "--tag", "k=v")
    run_one(balsam, site, JobState.RUN_ERROR)
    run_one(balsam, site, JobState.RUN_DONE)
    assert balsam("job", "retry", "--tag", "k=v", "--yes") == "1\n", "only what failed"
    assert balsam.service.job(first).state is JobState.RESTART_READY
    assert balsam.service.job(second).state is JobState.JOB_FINISHED
    assert balsam("job", "retry", second) == "1\n", "what is named"
    assert balsam.service.job(second).state is JobState.RESTART_READY
    run_one(balsam, site, JobState.RUN_DONE)
    chosen = ("--state", "JOB_FINISHED", "--app", "Hello", "--yes")
    assert balsam.json("job", "retry", *chosen) == {"count": 1}
    assert "say which jobs" in balsam.fails("job", "retry", "--yes", code=2)
    assert "give --yes" in balsam.fails("job", "retry", "--tag", "k=v", code=2)
    third = create(balsam, "c")
    assert "cannot go from PREPROCESSED to RESTART_READY" in balsam.fails("job", "retry", third)


def test_what_set_means() -> None:
    found = parse(["tags.a=1", "data.b=1", "data.c=x", "data.d=", "state_data={}", "input_files=[]", "workdir=a=b"])
    assert found.fields == {"state_data": {}, "input_files": [], "workdir": "a=b"}
    assert found.keys == {"tags": {"a": "1"}, "data": {"b": 1, "c": "x", "d": ""}}
    assert "state_data" in OBJECTS
    with pytest.raises(typer.BadParameter):
        parse(["state_data.a=1"])
