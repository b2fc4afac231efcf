"""What every scheduler has to do, run over each of them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from balsam_exec.platform.processes import Process
from balsam_exec.platform.schedulers import make_scheduler
from balsam_exec.platform.schedulers.base import ModifyRefused, SchedulerState, SubmitRefused
from balsam_exec.platform.settings import SiteDirectory
from tests.platform.bench import BENCHES, Bench, LocalBench
from tests.support import fake_batch
from tests.support.processes import wait_until

FINISHED, RUNNING = SchedulerState.FINISHED, SchedulerState.RUNNING

#: A script that says when it is there, and ends when the file `go` is in the directory of its log.
WAITING = "echo ready; cd $(dirname $(readlink /proc/$$/fd/1)); while [ ! -e go ]; do sleep 0.02; done;"


@pytest.fixture(params=BENCHES)
def bench(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """Each scheduler in turn: local and Slurm themselves, commands that stand in for the others."""
    if request.param == "slurm":
        request.getfixturevalue("slurm")
    elif request.param != "local":
        for name, value in fake_batch.install(tmp_path / "batch").items():
            monkeypatch.setenv(name, value)
    directory = tmp_path / "site"
    directory.mkdir()
    bench = BENCHES[request.param](directory)
    yield bench
    bench.close()


@pytest.mark.parametrize("code", [0, 7])
def test_runs_the_script_and_knows_how_it_ended(bench: Bench, code: int) -> None:
    status = bench.wait_finished(bench.submit(f"echo hello; exit {code}"))
    assert status.exit_code == code
    assert f"exit code {code}" in status.info
    assert bench.logged() == ["hello"]


def test_a_running_one_is_running(bench: Bench) -> None:
    scheduler_id = bench.submit("exec sleep 60")
    bench.wait_state(scheduler_id, RUNNING)
    bench.scheduler.cancel(scheduler_id)
    bench.wait_finished(scheduler_id)


def test_the_script_knows_the_service(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BALSAM_URL", "http://a-service:1234")
    bench.wait_finished(bench.submit('echo "$BALSAM_URL"'))
    assert bench.logged() == ["http://a-service:1234"]


def test_what_was_never_submitted_is_not_taken_for_finished(bench: Bench) -> None:
    """Only the local scheduler's ids say themselves that nothing bears them any more."""
    known = bench.submit("exit 6")
    never = {"slurm": "4711", "pbs": "4711.fake", "lsf": "4711", "flux": "f4711x"}
    if (name := type(bench.scheduler).__name__.removesuffix("Scheduler").lower()) in never:
        bench.wait_finished(known)
        statuses = bench.scheduler.statuses([known, never[name]])
        assert statuses[known].exit_code == 6
        assert statuses[never[name]].state is SchedulerState.UNKNOWN
        bench.scheduler.cancel(never[name])  # harmless


def test_a_refusal_in_the_words_of_the_scheduler(bench: Bench) -> None:
    if isinstance(bench, LocalBench):
        return  # it takes everything
    with pytest.raises(SubmitRefused, match=r"(?i)queue|partition"):
        bench.submit("true", bench.spec(queue="no-such"))
    assert bench.scheduler.find("1") is None


def test_find_knows_what_was_submitted(bench: Bench) -> None:
    assert bench.scheduler.find("1") is None
    scheduler_id = bench.submit("true")
    assert bench.scheduler.find("1") == scheduler_id
    bench.wait_finished(scheduler_id)
    assert bench.scheduler.find("1") == scheduler_id
    assert bench.scheduler.find("11") is None


def test_it_knows_what_was_asked_for(bench: Bench) -> None:
    if isinstance(bench, LocalBench):
        return  # nothing of it is asked for there
    assert bench.scheduler.asked("1") == []
    spec = bench.spec(wall_time_min=2)
    bench.submit("true", spec)
    bench.restart()
    assert bench.scheduler.asked("1") == [spec.request]
    assert spec.request.wall_time_min == 2


def test_what_runs_is_not_changed(bench: Bench) -> None:
    scheduler_id = bench.submit("exec sleep 60")
    bench.wait_state(scheduler_id, RUNNING)
    with pytest.raises(ModifyRefused):
        bench.scheduler.modify(scheduler_id, bench.spec(), bench.spec(num_nodes=2))
    bench.scheduler.cancel(scheduler_id)
    bench.wait_finished(scheduler_id)


def test_several_at_a_time(bench: Bench) -> None:
    first = bench.submit(WAITING, bench.spec("first"))
    second = bench.submit("exit 2", bench.spec("second"))
    bench.wait_finished(second)
    bench.wait_state(first, RUNNING)
    statuses = bench.scheduler.statuses([first, second])
    assert {name: status.state for name, status in statuses.items()} == {first: RUNNING, second: FINISHED}
    (bench.log.parent / "go").touch()
    bench.wait_finished(first)


def test_a_key_runs_once(bench: Bench) -> None:
    first = bench.submit("echo run; sleep 0.1")
    second = bench.submit("echo run; sleep 0.1")
    assert first == second
    bench.wait_finished(first)
    assert bench.submit("echo run") == first
    assert bench.logged() == ["run"]


def test_an_id_that_was_lost_is_known_to_the_scheduler(bench: Bench) -> None:
    """The machine went down after the submission: the record of it is empty."""
    if isinstance(bench, LocalBench):
        return  # its record is made by the job itself, before it starts
    scheduler_id = bench.submit("echo run")
    bench.wait_finished(scheduler_id)
    (bench.qsubmit / "1.id").write_text("")
    bench.restart()
    assert bench.scheduler.find("1") == scheduler_id
    assert bench.submit("echo run") == scheduler_id
    assert bench.logged() == ["run"]


def test_a_key_runs_once_when_several_submit_it_at_once(bench: Bench) -> None:
    ids: list[str] = []
    spec = bench.spec()
    script = bench.script(spec, "echo run; exec sleep 60")
    threads = [threading.Thread(target=lambda: ids.append(bench.scheduler.submit(script, spec))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(ids) == 8
    assert len(set(ids)) == 1
    bench.wait_logged("run")
    bench.scheduler.cancel(ids[0])
    bench.wait_finished(ids[0])
    assert bench.logged().count("run") == 1


def test_cancel_lets_the_script_end_in_its_own_way(bench: Bench) -> None:
    scheduler_id = bench.submit("trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.01; done")
    bench.wait_logged("ready")
    bench.scheduler.cancel(scheduler_id)
    bench.scheduler.cancel(scheduler_id)  # harmless
    assert bench.wait_finished(scheduler_id).exit_code == 3
    assert [line for line in bench.logged() if not line.startswith("slurmstepd")] == ["ready", "bye"]


def test_cancel_kills_what_does_not_end_and_all_it_started(bench: Bench) -> None:
    scheduler_id = bench.submit("trap '' TERM; set -m; sleep 71 & echo $!; while :; do sleep 0.01; done")
    wait_until(lambda: bool(bench.logged()), 10, "the script to start")
    child = Process.of(int(bench.logged()[0]))
    assert child is not None
    bench.scheduler.cancel(scheduler_id)
    bench.scheduler.cancel(scheduler_id)  # harmless
    assert bench.wait_finished(scheduler_id).exit_code in (None, 128 + signal.SIGKILL)
    assert not child.alive
    bench.scheduler.cancel(scheduler_id)  # harmless


def test_a_restarted_scheduler_learns_of_the_end(bench: Bench) -> None:
    scheduler_id = bench.submit(f"{WAITING} exit 4")
    bench.wait_logged("ready")
    bench.restart()
    bench.wait_state(scheduler_id, RUNNING)
    (bench.log.parent / "go").touch()
    assert bench.wait_finished(scheduler_id).exit_code == 4


def test_a_restarted_scheduler_knows_what_ended_meanwhile(bench: Bench) -> None:
    scheduler_id = bench.submit("exit 5")
    before = bench.wait_finished(scheduler_id)
    bench.restart()
    assert bench.status(scheduler_id) == before


@pytest.mark.parametrize("name", BENCHES)
def test_settings_choose_it(name: str, tmp_path: Path) -> None:
    site = SiteDirectory(tmp_path)
    site.create("here")
    text = site.settings_file.read_text()
    site.settings_file.write_text(text.replace("scheduler: local", f"scheduler: {name}"))
    scheduler = make_scheduler(site.settings(), site, lambda: None)
    assert type(scheduler).__name__ == f"{name.capitalize()}Scheduler"
    assert scheduler.poll_sec == (None if name == "local" else 10)
    scheduler.close()


def test_asked_about_nothing(bench: Bench) -> None:
    assert bench.scheduler.statuses([]) == {}
