"""Command apps, run by a real launcher over a service in memory."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from balsam_exec.launcher.commands import command_words
from balsam_exec.model.apps import ParameterSpec
from balsam_exec.model.jobs import Result
from balsam_exec.model.states import JobState
from balsam_exec.platform import mpi
from tests.launcher.conftest import Running
from tests.launcher.fake_service import FakeService
from tests.support.processes import wait_gone, wait_until

Launch = Callable[..., Running]


@pytest.fixture
def run(service: FakeService, launch: Launch, tmp_path: Path) -> Callable[..., tuple[Result, str]]:
    """Run one job of a command; gives its result and its job.out."""

    def run(command: str, app: dict[str, Any] | None = None, **job: Any) -> tuple[Result, str]:
        app_record = service.add_app(command_template=command, **(app or {}))
        job_id = service.add_job(app_record, workdir="some/dir", **job)
        launch()
        service.wait([job_id])
        return service.results[job_id], (tmp_path / "data/some/dir/job.out").read_text()

    return run


def test_success(run: Callable[..., tuple[Result, str]], service: FakeService, tmp_path: Path) -> None:
    result, output = run("echo out; echo err >&2; pwd; echo $BALSAM_JOB_ID $BALSAM_BATCH_JOB_ID")
    assert result == Result(ok=True, return_code=0)
    assert output == f"out\nerr\n{tmp_path}/data/some/dir\n1 3\n"
    running, done = service.history[1]
    assert (running.state, done.state) == (JobState.RUNNING, JobState.RUN_DONE)
    assert running.timestamp < done.timestamp
    assert done.data == {"return_code": 0}


@pytest.mark.parametrize(
    ("command", "code", "error"),
    [
        ("sh -c 'echo oops >&2; exit 3'", 3, "exit code 3\noops"),
        ("exit 7", 7, "exit code 7"),
        ("false", 1, "exit code 1"),
        ("kill -SEGV $$", -signal.SIGSEGV, "killed by SIGSEGV"),
        ("no_such_program", 127, "exit code 127\nbash: line 1: no_such_program: command not found"),
        ("./not_here", 127, "exit code 127\nbash: line 1: ./not_here: No such file or directory"),
        ("echo 'unclosed", 2, "exit code 2\nbash:"),
        (r"printf 'a\0b'; exit 4", 4, "exit code 4\na\\0b"),
    ],
)
def test_failure(
    run: Callable[..., tuple[Result, str]], service: FakeService, command: str, code: int, error: str
) -> None:
    result, _ = run(command)
    assert (result.ok, result.reason, result.return_code) == (False, "exit", code)
    assert result.error.startswith(error)
    data = service.history[1][-1].data
    assert (data["return_code"], data["error"]) == (code, result.error)


def test_what_no_process_can_be_given_fails_its_job_alone(service: FakeService, launch: Launch) -> None:
    app = service.add_app(command_template="echo {{ x }}", parameters={"x": ParameterSpec()})
    jobs = [service.add_job(app, parameters={"x": x}) for x in ("\ud800", "fine")]
    launch()
    service.wait(jobs)
    surrogate, fine = (service.results[job] for job in jobs)
    assert surrogate.error.startswith("the job could not be started: 'utf-8' codec can't encode")
    assert fine.ok


def test_the_error_holds_the_tail_of_this_job_s_output_alone(
    service: FakeService, launch: Launch, tmp_path: Path
) -> None:
    talk = service.add_app(command_template="echo of the first")
    fail = service.add_app(
        command_template="{% if n %}seq {{ n }};{% endif %} exit 1", parameters={"n": ParameterSpec()}
    )
    launch(cores=1)
    service.wait(service.add_jobs(talk, workdir="shared"))
    short, long = (service.add_job(fail, workdir="shared", parameters={"n": n}) for n in (0, 10000))
    service.wait([short, long])
    assert service.results[short].error == "exit code 1"
    assert service.results[long].error.endswith("9999\n10000")
    assert len(service.results[long].error) < 2100
    assert (tmp_path / "data/shared/job.out").read_text().startswith("of the first\n1\n2\n")


def test_stderr_in_a_file_of_its_own(service: FakeService, launch: Launch, tmp_path: Path) -> None:
    app = service.add_app(command_template="echo out; echo err >&2; exit 3")
    quiet = service.add_app(command_template="echo out; exit 3")
    launch(cores=1)
    apart = {"workdir": "w", "stdout": "logs/out", "stderr": "err"}
    both = [service.add_job(app, **apart), service.add_job(quiet, **apart)]
    same = service.add_job(app, workdir="w", stdout="both", stderr="both")
    service.wait([*both, same])
    workdir = tmp_path / "data/w"
    assert (workdir / "logs/out").read_text() == "out\nout\n"
    assert (workdir / "err").read_text() == "err\n"
    assert (workdir / "both").read_text() == "out\nerr\n"
    assert not (workdir / "job.out").exists()
    errors = [service.results[job].error for job in (*both, same)]
    assert errors == ["exit code 3\nerr", "exit code 3\nout", "exit code 3\nout\nerr"]


def test_output_files_that_cannot_be_made_fail_the_job(service: FakeService, launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "data/w/dir").mkdir(parents=True)
    launch()
    app = service.add_app(command_template="true")
    jobs = [service.add_job(app, workdir="w", **{field: "dir"}) for field in ("stdout", "stderr")]
    service.wait(jobs)
    for job in jobs:
        assert "the job could not be started: Is a directory" in service.results[job].error


def test_parameters_are_quoted_and_defaults_filled_in(run: Callable[..., tuple[Result, str]]) -> None:
    specs = {"a": ParameterSpec(), "b": ParameterSpec(required=False, default="d e")}
    _, output = run("printf '%s|' {{ a }} {{ b }}", {"parameters": specs}, parameters={"a": "x'; $(touch bad) \"y"})
    assert output == "x'; $(touch bad) \"y|d e|"


def test_wrong_parameters_fail_the_job(service: FakeService, launch: Launch) -> None:
    app = service.add_app(command_template="echo {{ a }}", parameters={"a": ParameterSpec()})
    launch()
    service.wait([service.add_job(app)])
    assert "could not be started: parameters of app1: missing: a" in service.results[1].error


def test_environment_variables(run: Callable[..., tuple[Result, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTER", "kept")
    monkeypatch.setenv("CHANGED", "before")
    _, output = run("echo $OUTER $CHANGED $NEW", {"environment_variables": {"CHANGED": "after", "NEW": "a b"}})
    assert output == "kept after a b\n"


def test_gpus_are_named_to_the_job(service: FakeService, launch: Launch, tmp_path: Path) -> None:
    show = "echo $CUDA_VISIBLE_DEVICES $ROCR_VISIBLE_DEVICES $ZE_AFFINITY_MASK"
    app = service.add_app(command_template=f"{show}; test -e go || read -t 20 x <> fifo")
    for i in (1, 2):
        workdir = tmp_path / f"data/{i}"
        workdir.mkdir(parents=True)
        os.mkfifo(workdir / "fifo")
    launch(gpus=3)
    jobs = [service.add_job(app, workdir=str(i), gpus_per_rank=i, node_packing_count=2) for i in (1, 2)]
    outputs = [tmp_path / f"data/{i}/job.out" for i in (1, 2)]
    wait_until(lambda: all(path.exists() and path.read_text() for path in outputs), 20, "both jobs")
    for i in (1, 2):
        (tmp_path / f"data/{i}/fifo").write_text("go\n")
    service.wait(jobs)
    assert [path.read_text() for path in outputs] == ["0 0 0\n", "1,2 1,2 1,2\n"]


def test_a_job_without_gpus_sees_none(service: FakeService, launch: Launch, tmp_path: Path) -> None:
    launch(gpus=1)
    service.wait([service.add_job(service.add_app(command_template="echo [$CUDA_VISIBLE_DEVICES]"), workdir="w")])
    assert (tmp_path / "data/w/job.out").read_text() == "[]\n"


def test_what_a_job_leaves_in_its_process_group_ends_with_it(
    run: Callable[..., tuple[Result, str]], tmp_path: Path
) -> None:
    _, output = run("sleep 100 & echo $!")
    assert wait_gone(int(output), 10)


def test_a_drain_ends_a_whole_process_group(service: FakeService, launch: Launch, tmp_path: Path) -> None:
    app = service.add_app(command_template="trap '' TERM; sleep 100 & echo $!; echo ready; wait; wait; sleep 100")
    running = launch(grace=0.3)
    job_id = service.add_job(app, workdir="w")
    output = tmp_path / "data/w/job.out"
    wait_until(lambda: output.exists() and "ready" in output.read_text(), 20, "the job")
    running.launcher.drain("enough")
    assert running.join()
    assert service.state[job_id] is JobState.RUN_TIMEOUT
    assert service.history[job_id][-1].data == {"error": "enough"}
    assert service.closed
    assert wait_gone(int(output.read_text().split()[0]), 10)


def test_a_drain_gives_grace_to_what_a_shell_runs(service: FakeService, launch: Launch, tmp_path: Path) -> None:
    """The shell dies of SIGTERM at once, the program below it saves its work first."""
    program = tmp_path / "program"
    program.write_text(
        "#!/bin/bash\ntrap 'sleep 0.3; echo saved; exit' TERM\necho ready\nwhile :; do sleep 0.05; done\n"
    )
    program.chmod(0o755)
    app = service.add_app(command_template=f"set -m; {program} & {program}; echo after")
    running = launch(grace=20)
    job_id = service.add_job(app, workdir="w")
    output = tmp_path / "data/w/job.out"
    wait_until(lambda: output.exists() and output.read_text().count("ready") == 2, 20, "the job")
    running.launcher.drain("enough")
    wait_until(lambda: "saved" in output.read_text(), 20, "the checkpoint")
    running.launcher.drain("at once", at_once=True)
    assert running.join()
    assert service.state[job_id] is JobState.RUN_TIMEOUT


def test_a_workdir_that_cannot_be_made_fails_the_job(service: FakeService, launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/file").touch()
    launch()
    service.wait([service.add_job(service.add_app(command_template="true"), workdir="file/below")])
    assert "Not a directory" in service.results[1].error


def test_several_ranks_need_an_mpi_launcher(
    service: FakeService, launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mpiexec = tmp_path / "bin/mpiexec"
    mpiexec.parent.mkdir()
    monkeypatch.setattr(mpi.sys, "executable", str(tmp_path / "elsewhere/python"))
    app = service.add_app(command_template="hello {{ x }}", parameters={"x": ParameterSpec()})
    monkeypatch.setenv("PATH", f"{mpiexec.parent}:/usr/bin:/bin")
    launch(cores=4)
    fields = {"ranks_per_node": 2, "parameters": {"x": "a b"}, "workdir": "w", "launch_params": {"-bind-to": "core"}}
    if not any(Path(f"/{d}/mpiexec").exists() for d in ("usr/bin", "bin")):
        without = service.add_job(app, **fields)
        service.wait([without])
        assert "wants 2 ranks and there is no mpiexec on the PATH" in service.results[without].error
    mpiexec.write_text("#!/bin/bash\nprintf '%s|' \"$@\"\n")
    mpiexec.chmod(0o755)
    service.wait([service.add_job(app, **fields)])
    assert (tmp_path / "data/w/job.out").read_text() == "-n|2|-bind-to|core|bash|-c|hello 'a b'|"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("true", ["/usr/bin/true"]),
        ("true a 'b c' --x=1,2", ["/usr/bin/true", "a", "b c", "--x=1,2"]),
        ("/usr/bin/true x", ["/usr/bin/true", "x"]),
    ],
)
def test_plain_commands_need_no_shell(line: str, words: list[str]) -> None:
    assert command_words(line, "/usr/bin") == words


@pytest.mark.parametrize(
    "line",
    [
        "true; true",
        "echo $X",
        "cat < a",
        "a | b",
        'echo "x"',
        "X=1 true",
        "cd /",
        "./true",
        "true *",
        "~/x",
        "true &",
        "\n",
    ],
)
def test_everything_else_is_for_bash(line: str) -> None:
    assert command_words(line, "/usr/bin") == ["bash", "-c", line]
