"""`balsam job` and `balsam app`."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from balsam_exec.model.apps import AppRecord, AppSpec
from balsam_exec.model.base import now
from balsam_exec.model.jobs import JobSpec, Result
from balsam_exec.model.sessions import AcquireRequest, Report, SessionSpec
from balsam_exec.model.sites import SiteRecord, SiteSpec
from balsam_exec.model.states import JobState
from tests.cli.conftest import Balsam


def create(balsam: Balsam, workdir: str, *options: object) -> int:
    return int(balsam("job", "create", "--app", "Hello", "--workdir", workdir, "-p", "name=you", *options))


def run_one(balsam: Balsam, site: SiteRecord, state: JobState, error: str = "") -> int:
    """Do what a launcher would with the next job."""
    session = balsam.service.open_session(SessionSpec(site_id=site.id))
    (job,) = balsam.service.acquire(session.id, AcquireRequest(max_jobs=1, max_nodes=1))
    start = now()
    code = 0 if state is JobState.RUN_DONE else 3
    end = Report(
        job_id=job.id,
        epoch=job.epoch,
        state=state,
        timestamp=start + timedelta(seconds=1),
        data={"return_code": code, **({"error": error} if error else {})},
        result=Result(ok=code == 0, error=error, return_code=code),
    )
    running = Report(job_id=job.id, epoch=job.epoch, state=JobState.RUNNING, timestamp=start)
    balsam.service.report(session.id, [running, end])
    balsam.service.close_session(session.id)
    return job.id


def test_create_makes_what_it_was_told(balsam: Balsam, hello: AppRecord) -> None:
    parent = create(balsam, "hello/parent")
    job_id = create(
        balsam, "hello/1", "-p", "greeting=good day=", "--tag", "kind=test", "--tag", "n=1", "--parent", parent,
        "--nodes", 2, "--ranks-per-node", 3, "--threads-per-rank", 4, "--gpus-per-rank", 0.5, "--wall-time-min", 7,
        "--node-packing-count", 2,
    )  # fmt: skip
    job = balsam.service.job(job_id)
    assert job.app_id == hello.id
    assert job.workdir == "hello/1"
    assert job.parameters == {"name": "you", "greeting": "good day="}
    assert job.tags == {"kind": "test", "n": "1"}
    assert job.parent_ids == [parent]
    assert (job.num_nodes, job.ranks_per_node, job.threads_per_rank, job.gpus_per_rank) == (2, 3, 4, 0.5)
    assert (job.wall_time_min, job.node_packing_count) == (7, 2)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--app", "Hello", "-w", "x"], 1, "missing: name"),
        (["--app", "Hello", "-w", "x", "-p", "name=a", "-p", "size=1"], 1, "unknown: size"),
        (["--app", "Hello", "-w", "x", "-p", "name"], 2, "is not KEY=VALUE"),
        (["--app", "Hello", "-w", "../x", "-p", "name=a"], 2, "workdir"),
        (["--app", "Hallo", "-w", "x"], 1, "there is no app 'Hallo'"),
        (["--app", "Hello", "-w", "x", "--nodes", "0", "-p", "name=a"], 2, "--nodes"),
        (["--app", "Hello", "-w", "x", "-p", "name=a", "--parent", "99"], 1, "99"),
        (["--app", "Hello", "-w", "x", "-p", "name=\udcff"], 1, "surrogates not allowed"),
        (["--app", "Hello"], 2, "--workdir"),
        (["--app", "Hello", "-w", "x", "-p", "name=a", "--site", "nowhere"], 1, "no site named 'nowhere'"),
    ],
)
def test_create_refuses(balsam: Balsam, hello: AppRecord, options: list[str], code: int, message: str) -> None:
    assert message in balsam.fails("job", "create", *options, code=code)
    assert balsam.service.count_jobs() == 0


def test_create_of_an_app_of_several_sites(balsam: Balsam, hello: AppRecord) -> None:
    other = balsam.service.create_site(SiteSpec(name="other"))
    spec = AppSpec(site_id=other.id, name="Hello", command_template="true")
    twin = balsam.service.put_app(spec)
    assert "say which site" in balsam.fails("job", "create", "--app", "Hello", "-w", "x")
    job_id = int(balsam("job", "create", "--app", "Hello", "-w", "x", "--site", "other"))
    assert balsam.service.job(job_id).app_id == twin.id


def test_ls(balsam: Balsam, hello: AppRecord) -> None:
    first, second = create(balsam, "a", "--tag", "kind=test"), create(balsam, "b", "--tag", "n=2")
    rows = balsam.rows("job", "ls")
    assert [int(row["ID"]) for row in rows] == [first, second]
    assert rows[0]["APP"] == "Hello"
    assert rows[0]["WORKDIR"] == "a"
    assert rows[0]["STATE"] == "PREPROCESSED"
    assert rows[0]["TAGS"] == "kind=test"
    assert datetime.fromisoformat(rows[0]["CREATED"]) <= now()
    assert [job["id"] for job in balsam.json("job", "ls")] == [first, second]


def test_ls_filters(balsam: Balsam, site: SiteRecord, hello: AppRecord) -> None:
    plain, tagged = create(balsam, "w/plain"), create(balsam, "w/tagged", "--tag", "kind=test", "--tag", "n=1")
    run_one(balsam, site, JobState.RUN_DONE)

    def found(*options: object) -> list[int]:
        return [int(row["ID"]) for row in balsam.rows("job", "ls", *options)]

    assert found("--state", "JOB_FINISHED") == found("--state", "job_finished") == [plain]
    assert found("--state", "PREPROCESSED") == [tagged]
    assert found("--state", "PREPROCESSED", "--state", "JOB_FINISHED") == [plain, tagged]
    assert found("--tag", "kind:test") == [tagged]
    assert found("--tag", "kind=test") == found("--tag", "kind=test", "--tag", "n=1") == [tagged]
    assert found("--tag", "kind=test", "--tag", "n=2") == []
    assert found("--site", "theta") == found("--site", site.id) == [plain, tagged]
    assert found("--workdir", "plain") == [plain]
    assert found("--app", "Hello") == [plain, tagged]
    assert found("--app", "Other") == []
    assert found(tagged) == [tagged]
    assert "STATE" in balsam.fails("job", "ls", "--state", "NO_SUCH_STATE", code=2).upper()
    assert "is not KEY=VALUE" in balsam.fails("job", "ls", "--tag", "kind", code=2)
    assert "nowhere" in balsam.fails("job", "ls", "--site", "nowhere")


def test_ls_shows_the_latest_and_says_so(balsam: Balsam, hello: AppRecord) -> None:
    specs = [JobSpec(app_id=hello.id, workdir=f"w{i}", parameters={"name": "x"}) for i in range(1050)]
    ids = [created.id for created in balsam.service.create_jobs(specs)]
    code, out, err = balsam.run("job", "ls", "--limit", 2)
    assert code == 0
    assert [int(line.split("\t")[0]) for line in out.splitlines()[1:]] == ids[-2:]
    assert "2 of 1050" in err
    assert [job["id"] for job in balsam.json("job", "ls", "--limit", 2000)] == ids
    assert len(balsam.rows("job", "ls")) == 100


def test_by_state(balsam: Balsam, site: SiteRecord, hello: AppRecord) -> None:
    for i in range(3):
        create(balsam, f"w{i}", "--tag", f"n={i}")
    run_one(balsam, site, JobState.RUN_DONE)
    run_one(balsam, site, JobState.RUN_ERROR, "simulated error")
    counts = {"PREPROCESSED": 1, "JOB_FINISHED": 1, "FAILED": 1}
    assert {row["STATE"]: int(row["JOBS"]) for row in balsam.rows("job", "ls", "--by-state")} == counts
    assert balsam.json("job", "ls", "--by-states") == counts
    assert balsam.json("job", "ls", "--by-state", "--tag", "n=2") == {"PREPROCESSED": 1}


def test_history(balsam: Balsam, site: SiteRecord, hello: AppRecord) -> None:
    """As seed 002 shows it: every state with its time, and the error below its own."""
    create(balsam, "done")
    failed = create(balsam, "testfail")
    run_one(balsam, site, JobState.RUN_DONE)
    run_one(balsam, site, JobState.RUN_ERROR, "Traceback (most recent call last):\nRuntimeError: simulated error")
    lines = balsam("job", "ls", "--history", "--state", "FAILED").splitlines()
    assert lines[0] == f"Job {failed} Hello testfail"
    assert lines[1] == "-" * len(lines[0])
    states = [line.split()[2].rstrip("]") for line in lines if line.startswith("[")]
    assert states == ["CREATED", "PREPROCESSED", "RUNNING", "RUN_ERROR", "FAILED"]
    for line in lines:
        if line.startswith("["):
            datetime.strptime(" ".join(line[1:].split()[:2]), "%Y-%m-%d %H:%M:%S.%f")
    error = next(i for i, line in enumerate(lines) if "RUN_ERROR" in line)
    assert "exit code 3" in lines[error]
    assert lines[error + 1] == "    RuntimeError: simulated error"
    (told,) = balsam.json("job", "ls", "--history", "--state", "FAILED")
    assert [event["to_state"] for event in told["history"]] == states[1:]


def test_rm(balsam: Balsam, hello: AppRecord) -> None:
    one, two, three, four = (create(balsam, f"w{i}", "--tag", f"odd={i % 2}") for i in range(4))
    assert balsam("job", "rm", one) == "1\n"
    assert "give --yes" in balsam.fails("job", "rm", "--tag", "odd=1", code=2)
    assert balsam("job", "rm", "--tag", "odd=1", "--yes") == "2\n"
    assert [int(row["ID"]) for row in balsam.rows("job", "ls")] == [three]
    assert "which jobs" in balsam.fails("job", "rm", "--yes", code=2)
    assert {one, two, four}.isdisjoint({three})


def test_create_with_all_there_is(balsam: Balsam, hello: AppRecord) -> None:
    parent = create(balsam, "parent")
    job_id = create(
        balsam, "w", "--num-nodes", 3, "--threads-per-core", 2, "--launch-param", "bind=none", "--data", '{"a": [1]}',
        "--parent", parent, "--on-parent-failure", "hold", "--input-file", "*.out", "--input-file", "x/*",
    )  # fmt: skip
    job = balsam.service.job(job_id)
    assert (job.num_nodes, job.threads_per_core, job.launch_params) == (3, 2, {"bind": "none"})
    assert job.data == {"a": [1]}
    assert (job.on_parent_failure, job.input_files) == ("hold", ["*.out", "x/*"])
    assert "is no JSON object" in balsam.fails(
        "job", "create", "--app", "Hello", "-w", "w", "-p", "name=x", "--data", "[1]", code=2
    )


def test_show(balsam: Balsam, hello: AppRecord) -> None:
    job_id = create(balsam, "w", "--tag", "kind=test", "--nodes", 2)
    rows = {row["FIELD"]: row["VALUE"] for row in balsam.rows("job", "show", job_id)}
    assert rows["app"] == "Hello"
    assert rows["site"] == "theta"
    assert (rows["id"], rows["num_nodes"], rows["tags"]) == (str(job_id), "2", "kind=test")
    assert "return_code" not in rows, "only what says something"
    assert "there is no job 4711" in balsam.fails("job", "show", 4711)


def test_history_of_some(balsam: Balsam, hello: AppRecord) -> None:
    one, two = create(balsam, "a"), create(balsam, "b")
    told = balsam("job", "history", two, one)
    assert told.index(f"Job {two} ") < told.index(f"Job {one} ")
    assert told.count("PREPROCESSED]") == 2
    assert "there is no job 4711" in balsam.fails("job", "history", one, 4711)


def test_explain(balsam: Balsam, hello: AppRecord) -> None:
    job_id = create(balsam, "w")
    assert balsam("job", "explain", job_id).startswith(f"job {job_id} is PREPROCESSED: no launcher runs at site theta")
    assert balsam.json("job", "explain", job_id)["reasons"][0]["code"] == "no_allocation"
    assert "there is no job 4711" in balsam.fails("job", "explain", 4711)


def test_app_show_and_rm(balsam: Balsam, hello: AppRecord) -> None:
    for wanted in ("Hello", hello.id):
        rows = {row["FIELD"]: row["VALUE"] for row in balsam.rows("app", "show", wanted)}
        assert rows["command_template"] == "echo {{ greeting }} {{ name }}"
        assert rows["site"] == "theta"
    job = create(balsam, "w")
    assert "has jobs" in balsam.fails("app", "rm", "Hello")
    balsam("job", "rm", job)
    assert balsam("app", "rm", "Hello") == f"removed Hello (id {hello.id})\n"
    assert "there is no app 'Hello'" in balsam.fails("app", "rm", "Hello")


def test_all_sites(balsam: Balsam, hello: AppRecord) -> None:
    """Seed 001: `balsam app ls --site=all`."""
    job = create(balsam, "w")
    assert [row["NAME"] for row in balsam.rows("app", "ls", "--site=all")] == ["Hello"]
    assert [row["ID"] for row in balsam.rows("job", "ls", "--site=all")] == [str(job)]
    assert "say which jobs" in balsam.fails("job", "rm", "--site=all", "--yes", code=2)


def test_app_ls(balsam: Balsam, hello: AppRecord) -> None:
    (row,) = balsam.rows("app", "ls")
    assert row == {"ID": str(hello.id), "NAME": "Hello", "SITE": "theta", "KIND": "command"}
    told = balsam("app", "ls", "--verbose", "--site", "theta")
    assert "echo {{ greeting }} {{ name }}" in told
    assert "name: required" in told
    assert "greeting: default 'hello'" in told
    assert balsam.json("app", "ls")[0]["name"] == "Hello"
    balsam.service.create_site(SiteSpec(name="other"))
    assert balsam.rows("app", "ls", "--site", "other") == []


def test_kill(balsam: Balsam, site: SiteRecord, hello: AppRecord) -> None:
    done = create(balsam, "done")
    run_one(balsam, site, JobState.RUN_DONE)
    held, waiting = create(balsam, "held"), create(balsam, "waiting", "--tag", "k=v")
    session = balsam.service.open_session(SessionSpec(site_id=site.id))
    balsam.service.acquire(session.id, AcquireRequest(max_jobs=1, max_nodes=1))
    assert balsam("job", "kill", "--tag", "k=v", "--yes") == "1 killed, 0 being killed, 0 had ended otherwise\n"
    assert balsam("job", "kill", done, held, waiting) == "1 killed, 1 being killed, 1 had ended otherwise\n"
    assert balsam.service.job(waiting).state is JobState.USER_KILLED
    assert balsam.service.heartbeat(session.id).kill == {held: 1}
    assert "there is no job 4711" in balsam.fails("job", "kill", 4711)
    assert "say which jobs" in balsam.fails("job", "kill", code=2)
    assert "give --yes" in balsam.fails("job", "kill", "--tag", "k=v", code=2)
