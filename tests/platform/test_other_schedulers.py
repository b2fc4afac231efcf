"""PBS Pro, LSF and Flux: what they ask for, and what the answers mean that their documentation shows."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from balsam_exec.platform.schedulers import FluxScheduler, LsfScheduler, PbsScheduler, Scheduler, Status, SubmitSpec
from balsam_exec.platform.schedulers.base import ModifyRefused, SchedulerState, SchedulerUnavailable, SubmitRefused
from tests.support import fake_batch

FINISHED, QUEUED, RUNNING, UNKNOWN = (
    SchedulerState.FINISHED,
    SchedulerState.QUEUED,
    SchedulerState.RUNNING,
    SchedulerState.UNKNOWN,
)

#: Has a command print this, and fail with this code and these words.
Record = Callable[..., None]


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Record:
    commands = tmp_path / "bin"
    commands.mkdir()
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")

    def record(name: str, out: str, err: str = "", code: int = 0) -> None:
        words = f"printf %s {shlex.quote(out)}; printf %s {shlex.quote(err)} >&2; exit {code}"
        (commands / name).write_text(f"#!/bin/sh\n{words}\n")
        (commands / name).chmod(0o755)

    return record


@pytest.fixture
def pbs(tmp_path: Path) -> PbsScheduler:
    return PbsScheduler(tmp_path, poll_sec=1)


@pytest.fixture
def lsf(tmp_path: Path) -> LsfScheduler:
    return LsfScheduler(tmp_path, poll_sec=1)


@pytest.fixture
def flux(tmp_path: Path) -> FluxScheduler:
    return FluxScheduler(tmp_path, poll_sec=1)


def spec(queue: str = "debug", project: str = "physics", **params: str) -> SubmitSpec:
    return SubmitSpec("1", 2, 90, queue, project, Path("/site/log"), params)


def test_what_pbs_is_asked_for(pbs: PbsScheduler) -> None:
    assert pbs.directives(spec(filesystems="home:eagle")) == [
        "#PBS -l select=2",
        "#PBS -l place=scatter:excl",
        "#PBS -l walltime=01:30:00",
        "#PBS -l filesystems=home:eagle",
        "#PBS -q debug",
        "#PBS -A physics",
    ]
    assert "#PBS -l place=scatter" in pbs.directives(spec("local", "local", place="scatter"))
    assert len(pbs.directives(spec("local", "local", place="scatter"))) == 3


def test_what_lsf_is_asked_for(lsf: LsfScheduler) -> None:
    asked = ["#BSUB -nnodes 2", "#BSUB -W 90", "#BSUB -q debug", "#BSUB -P physics", "#BSUB -alloc_flags smt4"]
    assert lsf.directives(spec(alloc_flags="smt4")) == asked
    assert lsf.directives(spec("local", "local")) == asked[:2]


def test_what_flux_is_asked_for(flux: FluxScheduler) -> None:
    asked = ["#flux: --nodes=2", "#flux: --exclusive", "#flux: --time-limit=90m"]
    assert flux.directives(spec(requires="gpu")) == [
        *asked,
        "#flux: --queue=debug",
        "#flux: --bank=physics",
        "#flux: --requires=gpu",
    ]
    assert flux.directives(spec("local", "local")) == asked


def asked(num_nodes: int = 2, queue: str = "debug", **params: str) -> SubmitSpec:
    return SubmitSpec("1", num_nodes, 90, queue, "physics", Path("/site/log"), params)


@pytest.fixture
def words_of(tmp_path: Path, record: Record) -> Callable[[str, Scheduler, SubmitSpec], list[str]]:
    """What a command is called with, to have the scheduler make a job that waits this one."""

    def words_of(command: str, scheduler: Scheduler, wanted: SubmitSpec) -> list[str]:
        program = tmp_path / "bin" / command
        program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/words\n')
        program.chmod(0o755)
        (tmp_path / "1.json").unlink(missing_ok=True)
        scheduler.modify("7", asked(fs="home"), wanted)
        assert scheduler.asked("1") == [wanted.request]
        return (tmp_path / "words").read_text().splitlines()

    return words_of


Words = Callable[[str, Scheduler, SubmitSpec], list[str]]


@pytest.mark.parametrize("kind", [PbsScheduler, LsfScheduler, FluxScheduler])
@pytest.mark.parametrize(
    ("queue", "project", "params", "words"),
    [
        ("debug -l walltime=99:00:00", "physics", {}, "several options"),
        ("debug", "physics -q prod --queue=prod", {}, "several options"),
        ("debug", "physics\n#PBS -q prod", {}, "more than one line"),
        ("debug", "it's", {}, "quot"),
        ("debug", "physics", {"x": "1 -q prod --queue=prod"}, "several options"),
        ("debug", "physics", {"x=1 -q prod": ""}, "cannot be the name"),
        ("debug", "physics", {"": "1"}, "cannot be the name"),
        ("debug", "physics", {"x": "1\n#PBS -q prod"}, "more than one line"),
    ],
)
def test_nothing_is_asked_for_beside_what_was(
    kind: Callable[..., Scheduler], queue: str, project: str, params: dict[str, str], words: str, tmp_path: Path
) -> None:
    with pytest.raises(SubmitRefused, match=words):
        kind(tmp_path, poll_sec=1).directives(spec(queue, project, **params))


@pytest.mark.parametrize(
    ("kind", "params"),
    [
        (PbsScheduler, {"walltime": "99:00:00"}),
        (PbsScheduler, {"nodes": "7"}),
        (PbsScheduler, {"select": "7"}),
        (PbsScheduler, {"select": "2:ncpus=8+1"}),
        (PbsScheduler, {"filesystems": "home,walltime=99:00:00"}),
        (LsfScheduler, {"W": "999"}),
        (LsfScheduler, {"q": "prod"}),
        (FluxScheduler, {"q": "prod"}),
        (FluxScheduler, {"time": "999"}),
        (FluxScheduler, {"N": "7"}),
    ],
)
def test_no_parameter_stands_in_for_a_field(
    kind: Callable[..., Scheduler], params: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(SubmitRefused, match="cannot be an optional parameter"):
        kind(tmp_path, poll_sec=1).directives(spec(**params))


def test_chunks_of_as_many_nodes(pbs: PbsScheduler) -> None:
    assert "#PBS -l select=1:ncpus=8+1:ngpus=4" in pbs.directives(spec(select="1:ncpus=8+1:ngpus=4"))


def test_a_value_with_spaces_is_quoted(lsf: LsfScheduler) -> None:
    assert "#BSUB -R 'select[mem>1] span[ptile=4]'" in lsf.directives(spec(R="'select[mem>1] span[ptile=4]'"))


def test_a_change_cannot_stand_in_for_a_field(pbs: PbsScheduler, record: Record) -> None:
    record("qalter", "")
    with pytest.raises(ModifyRefused, match="walltime cannot be an optional parameter"):
        pbs.modify("1", spec(), spec(walltime="99:00:00"))


def test_how_pbs_changes_what_waits(pbs: PbsScheduler, words_of: Words) -> None:
    wanted = asked(4, fs="home", place="scatter")
    assert words_of("qalter", pbs, wanted) == ["-l", "select=4", "-l", "place=scatter", "7"]
    assert words_of("qmove", pbs, asked(queue="prod", fs="home")) == ["prod", "7"]
    with pytest.raises(ModifyRefused, match="change the queue alone"):
        words_of("qmove", pbs, asked(4, queue="prod", fs="home"))
    with pytest.raises(ModifyRefused, match="-l fs cannot be taken back"):
        words_of("qalter", pbs, asked(4))


def test_somebody_died_over_a_change(pbs: PbsScheduler, tmp_path: Path, record: Record) -> None:
    """It may have been done: what it was about is asked for as well, whatever was recorded."""
    record("qalter", "")
    pbs.modify("7", asked(), asked(4))  # and nobody heard of that
    (tmp_path / "bin/qalter").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/words\n')
    pbs.modify("7", asked(), asked(fs="home"))
    assert (tmp_path / "words").read_text() == "-l select=2 -l fs=home 7\n"
    with pytest.raises(ModifyRefused, match="-l fs cannot be taken back"):
        pbs.modify("7", asked(), asked())
    assert pbs.asked("1") == [asked().request], "given up"
    pbs.modify("7", asked(), asked(fs="home"))
    record("qalter", "", "no", 1)
    for wanted, known in ((asked(9, fs="eagle"), asked(fs="home")), (asked(fs="a"), asked(fs="a"))):
        with pytest.raises(ModifyRefused):
            pbs.modify("7", asked(fs="a"), wanted)
        assert pbs.asked("1") == [known.request]


def test_two_died_over_changes(
    pbs: PbsScheduler, tmp_path: Path, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them may have been done, also that of the first."""
    before = asked(fs="home")
    with monkeypatch.context() as dying:
        dying.setattr(pbs, "run", Mock(side_effect=KeyboardInterrupt))
        for wanted in (asked(fs="eagle"), asked(4, fs="home"), asked(4, fs="home")):
            with pytest.raises(KeyboardInterrupt):
                pbs.modify("7", before, wanted)
    assert pbs.asked("1") == [before.request, asked(fs="eagle").request, asked(4, fs="home").request]
    record("qalter", "")
    (tmp_path / "bin/qalter").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/words\n')
    pbs.modify("7", before, before)
    assert (tmp_path / "words").read_text() == "-l select=2 -l fs=home 7\n"
    assert pbs.asked("1") == [before.request]


def test_how_lsf_changes_what_waits(lsf: LsfScheduler, words_of: Words) -> None:
    assert words_of("bmod", lsf, asked(4, "prod", fs="eagle")) == ["-nnodes", "4", "-q", "prod", "-fs", "eagle", "7"]


def test_how_flux_changes_what_waits(flux: FluxScheduler, words_of: Words) -> None:
    assert words_of("flux", flux, asked(queue="prod", fs="home")) == ["update", "7", "queue=prod"]
    with pytest.raises(ModifyRefused, match="Flux does not change --nodes"):
        words_of("flux", flux, asked(4, fs="home"))


@pytest.mark.parametrize(("command", "name"), [("qalter", "pbs"), ("bmod", "lsf"), ("flux", "flux")])
def test_a_change_that_is_refused_in_the_words_of_the_scheduler(
    pbs: PbsScheduler, lsf: LsfScheduler, flux: FluxScheduler, record: Record, command: str, name: str
) -> None:
    wanted = asked(queue="prod") if name == "flux" else asked(4)
    record(command, "", f"{command}: it is running\n", 1)
    with pytest.raises(ModifyRefused, match=f"{command}: it is running"):
        {"pbs": pbs, "lsf": lsf, "flux": flux}[name].modify("7", asked(), wanted)
    record(command, "", "cannot connect: Connection refused\n", 1)
    with pytest.raises(SchedulerUnavailable):
        {"pbs": pbs, "lsf": lsf, "flux": flux}[name].modify("7", asked(), wanted)


PBS: list[tuple[dict[str, Any], Status]] = [
    (
        {"job_state": "Q", "comment": "Not Running: Insufficient amount of resource: ncpus"},
        Status(QUEUED, info="Not Running: Insufficient amount of resource: ncpus"),
    ),
    ({"job_state": "H"}, Status(QUEUED)),
    (
        {
            "job_state": "R",
            "Resource_List": {"walltime": "01:00:00"},
            "resources_used": {"walltime": "00:10:30"},
            "comment": "Job run at Sat Nov 21 at 10:00 on (x3001:ncpus=64)",
        },
        Status(RUNNING, time_left=2970),
    ),
    ({"job_state": "R", "Resource_List": {"walltime": "01:00:00"}}, Status(RUNNING, time_left=3600)),
    ({"job_state": "E", "Resource_List": {}}, Status(RUNNING)),
    ({"job_state": "F", "Exit_status": 0}, Status(FINISHED, 0, "exit code 0")),
    (
        {"job_state": "F", "Exit_status": 3, "comment": "Job run at Sat and finished"},
        Status(FINISHED, 3, "exit code 3 (Job run at Sat and finished)"),
    ),
    ({"job_state": "F", "Exit_status": 271}, Status(FINISHED, 143, "ended by signal 15")),
    ({"job_state": "F", "Exit_status": -29}, Status(FINISHED, None, "it reached its wall time")),
    ({"job_state": "F", "Exit_status": -3}, Status(FINISHED, None, "PBS ended it (-3)")),
    ({"job_state": "F"}, Status(FINISHED, None, "it was deleted before it ran")),
    ({"job_state": "M"}, Status(UNKNOWN, info="PBS calls it M")),
]


@pytest.mark.parametrize(("job", "status"), PBS)
def test_what_pbs_says(pbs: PbsScheduler, record: Record, job: dict[str, Any], status: Status) -> None:
    record("qstat", json.dumps({"timestamp": 1, "pbs_version": "2022.1", "Jobs": {"7.polaris-pbs-01": job}}))
    assert pbs.statuses(["7.polaris-pbs-01.hsn.cm"]) == {"7.polaris-pbs-01.hsn.cm": status}


def test_pbs_tells_of_the_others_when_it_does_not_know_one(pbs: PbsScheduler, record: Record) -> None:
    known = json.dumps({"Jobs": {"7.pbs": {"job_state": "R"}}})
    record("qstat", known, "qstat: Unknown Job Id 8.pbs\n", 153)
    assert pbs.statuses(["7.pbs", "8.pbs", "9.pbs"]) == {
        "7.pbs": Status(RUNNING),
        "8.pbs": Status(UNKNOWN, info="the scheduler does not know it"),
        "9.pbs": Status(UNKNOWN, info="the scheduler does not list it"),
    }


def test_pbs_does_not_show_the_token(
    pbs: PbsScheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: Record
) -> None:
    monkeypatch.setenv("BALSAM_TOKEN", "secret")
    monkeypatch.setenv("BALSAM_URL", "http://service")
    command = pbs.submit_command(tmp_path / "1.sh", spec())
    handed_on = command[command.index("-v") + 1].split(",")
    assert "BALSAM_URL" in handed_on
    assert "BALSAM_TOKEN" not in handed_on
    assert "-V" not in command


LSF: list[tuple[dict[str, str], Status]] = [
    (
        {"STAT": "PEND", "PEND_REASON": "Job's requirements for resource reservation not satisfied;"},
        Status(QUEUED, info="Job's requirements for resource reservation not satisfied;"),
    ),
    ({"STAT": "RUN", "TIME_LEFT": "1:59 L"}, Status(RUNNING, time_left=7140)),
    ({"STAT": "SSUSP", "TIME_LEFT": "-"}, Status(RUNNING)),
    ({"STAT": "DONE", "EXIT_CODE": "", "EXIT_REASON": ""}, Status(FINISHED, 0, "exit code 0")),
    ({"STAT": "EXIT", "EXIT_CODE": "3"}, Status(FINISHED, 3, "exit code 3")),
    (
        {
            "STAT": "EXIT",
            "EXIT_CODE": "140",
            "EXIT_REASON": "TERM_RUNLIMIT: job killed after reaching LSF run time limit",
        },
        Status(FINISHED, 140, "exit code 140 (TERM_RUNLIMIT: job killed after reaching LSF run time limit)"),
    ),
    ({"STAT": "EXIT", "EXIT_CODE": ""}, Status(FINISHED, None, "it left no exit code")),
    ({"STAT": "UNKWN"}, Status(UNKNOWN, info="LSF calls it UNKWN")),
    ({"ERROR": "Job <7> is not found"}, Status(UNKNOWN, info="the scheduler does not know it")),
]


@pytest.mark.parametrize(("job", "status"), LSF)
def test_what_lsf_says(lsf: LsfScheduler, record: Record, job: dict[str, str], status: Status) -> None:
    record("bjobs", json.dumps({"COMMAND": "bjobs", "JOBS": 1, "RECORDS": [{"JOBID": "7", **job}]}))
    assert lsf.statuses(["7"]) == {"7": status}


FLUX: list[tuple[str, Status]] = [
    ("SCHED||||", Status(QUEUED)),
    ("DEPEND||||", Status(QUEUED)),
    ("RUN|||1790.5|", Status(RUNNING, time_left=1790.5)),
    ("CLEANUP|||0.0|", Status(RUNNING)),
    ("INACTIVE|COMPLETED|0|0.0|", Status(FINISHED, 0, "exit code 0")),
    ("INACTIVE|FAILED|3|0.0|", Status(FINISHED, 3, "exit code 3")),
    ("INACTIVE|FAILED|-9|0.0|", Status(FINISHED, 137, "ended by signal 9")),
    ("INACTIVE|CANCELED|||too late | or so", Status(FINISHED, None, "it was cancelled (too late | or so)")),
    ("INACTIVE|TIMEOUT|142|0.0|", Status(FINISHED, 142, "it reached its wall time")),
    ("NEW||||", Status(UNKNOWN, info="Flux calls it NEW")),
]


@pytest.mark.parametrize(("line", "status"), FLUX)
def test_what_flux_says(flux: FluxScheduler, record: Record, line: str, status: Status) -> None:
    record("flux", f"fAbc|{line}\n")
    assert flux.statuses(["fAbc"]) == {"fAbc": status}


AWAY = [
    ("qstat", "Connection refused\nqstat: cannot connect to server pbs-01 (errno=15010)\n"),
    ("bjobs", "LSF is down. Please wait ...\n"),
    ("flux", "flux-jobs: ERROR: [Errno 2] Unable to connect to Flux: broker socket /run/flux/local was not found\n"),
]


@pytest.mark.parametrize(("command", "words"), AWAY)
@pytest.mark.parametrize("out", ["", "half an ans"])
def test_away_says_nothing(
    pbs: PbsScheduler, lsf: LsfScheduler, flux: FluxScheduler, record: Record, command: str, words: str, out: str
) -> None:
    schedulers: dict[str, Scheduler] = {"qstat": pbs, "bjobs": lsf, "flux": flux}
    record(command, out, words, 1)
    with pytest.raises(SchedulerUnavailable, match=re.escape(words.splitlines()[-1])):
        schedulers[command].statuses(["7"])


@pytest.mark.parametrize(("command", "name"), [("qstat", "pbs"), ("bjobs", "lsf")])
def test_what_is_no_answer_says_nothing(
    pbs: PbsScheduler, lsf: LsfScheduler, record: Record, command: str, name: str
) -> None:
    record(command, "{ this is not JSON")
    with pytest.raises(SchedulerUnavailable):
        {"pbs": pbs, "lsf": lsf}[name].statuses(["7"])


def test_a_scheduler_that_is_away_while_submitting_is_no_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in fake_batch.install(tmp_path / "batch").items():
        monkeypatch.setenv(name, value)
    script = tmp_path / "1.sh"
    script.write_text("#!/bin/bash\n#BSUB -W 5\n")
    (tmp_path / "batch/jobs/trouble").write_text("LSF is down. Please wait ...")
    with pytest.raises(SchedulerUnavailable, match="LSF is down"):
        LsfScheduler(tmp_path, poll_sec=1).submit(script, spec())
