"""What is Slurm's own: its queue, its ways to end a job, its absence; on a real one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from balsam_exec.platform.schedulers.base import (
    ModifyRefused,
    SchedulerState,
    SchedulerUnavailable,
    Status,
    SubmitRefused,
    Window,
)
from balsam_exec.platform.schedulers.slurm import SlurmScheduler, windows
from tests.platform.bench import POLL, SlurmBench
from tests.support.processes import wait_until
from tests.support.slurm import SlurmCluster

FINISHED, QUEUED, RUNNING, UNKNOWN = (
    SchedulerState.FINISHED,
    SchedulerState.QUEUED,
    SchedulerState.RUNNING,
    SchedulerState.UNKNOWN,
)


@pytest.fixture
def bench(slurm: SlurmCluster, tmp_path: Path) -> Iterator[SlurmBench]:
    bench = SlurmBench(tmp_path)
    yield bench
    bench.close()


def field(slurm: SlurmCluster, scheduler_id: str, name: str) -> str:
    return slurm.run("squeue", "-h", "-t", "all", "-j", scheduler_id, "-O", f"{name}:.200").strip()


def test_what_is_asked_for(slurm: SlurmCluster, bench: SlurmBench) -> None:
    spec = bench.spec("1", wall_time_min=90, queue="long", comment="not ours", requeue="", mincpus="2")
    scheduler_id = bench.submit("exec sleep 60", spec)
    assert (bench.qsubmit / "1.sh").read_text().splitlines()[:5] == [
        "#!/bin/bash",
        "#SBATCH --nodes=1",
        "#SBATCH --exclusive",
        "#SBATCH --time=90",
        "#SBATCH --partition=long",
    ]
    assert field(slurm, scheduler_id, "Partition") == "long"
    assert field(slurm, scheduler_id, "TimeLimit") == "1:30:00"
    assert field(slurm, scheduler_id, "Comment") == bench.scheduler.tag("1")
    bench.wait_state(scheduler_id, RUNNING)
    assert field(slurm, scheduler_id, "NumCPUs") == "8", "all of a node"
    assert "Requeue=0" in slurm.run("scontrol", "show", "job", scheduler_id)
    assert "MinCPUsNode=2" in slurm.run("scontrol", "show", "job", scheduler_id)


def test_a_script_that_asks_for_nothing_is_refused(bench: SlurmBench) -> None:
    script = bench.qsubmit / "1.sh"
    script.write_text("#!/bin/bash\ntrue\n")
    with pytest.raises(SubmitRefused, match=r"\{\{ directives \}\}"):
        bench.scheduler.submit(script, bench.spec())


def test_a_parameter_of_two_lines_is_refused(bench: SlurmBench) -> None:
    with pytest.raises(SubmitRefused, match="more than one line"):
        bench.scheduler.directives(bench.spec(constraint="gpu\nrm -rf /"))


@pytest.mark.parametrize("name", ["partition", "part", "N", "time", "account", "array", "a", "wait", "test-only", "M"])
def test_a_parameter_that_is_for_a_field_or_another_allocation(bench: SlurmBench, name: str) -> None:
    with pytest.raises(SubmitRefused, match=f"{name} cannot be an optional parameter"):
        bench.scheduler.directives(bench.spec(**{name: "2"}))


def test_odd_names_are_one_option(bench: SlurmBench) -> None:
    """As Slurm itself reads them."""
    for queue in ("no such", "it's", "#debug", "debug #x", "-x"):
        with pytest.raises(SubmitRefused, match=f"invalid partition specified: {queue}"):
            bench.submit("true", bench.spec(queue, queue=queue))


def test_refused_in_slurms_own_words(bench: SlurmBench) -> None:
    with pytest.raises(SubmitRefused, match="Invalid partition name specified"):
        bench.submit("true", bench.spec(queue="no-such"))


def test_what_waits_says_why_and_is_gone_at_once_when_cancelled(bench: SlurmBench) -> None:
    scheduler_id = bench.submit("true", bench.spec(begin="now+1hour"))
    assert bench.wait_state(scheduler_id, QUEUED) == Status(QUEUED, info="BeginTime")
    bench.scheduler.cancel(scheduler_id)
    assert bench.wait_finished(scheduler_id) == Status(FINISHED, info="CANCELLED: it was cancelled")
    assert bench.logged() == []


def test_time_left(bench: SlurmBench) -> None:
    status = bench.wait_state(bench.submit("exec sleep 60", bench.spec(wall_time_min=30)), RUNNING)
    assert status.time_left is not None
    assert 1700 < status.time_left <= 1800


# --- how a job ends


def test_a_signal(bench: SlurmBench) -> None:
    status = bench.wait_finished(bench.submit("kill -9 $$"))
    assert status.exit_code == 137
    assert "FAILED: ended by signal 9" in status.info


def test_cancelled_by_somebody_else(slurm: SlurmCluster, bench: SlurmBench) -> None:
    scheduler_id = bench.submit("exec sleep 60")
    bench.wait_state(scheduler_id, RUNNING)
    slurm.run("scancel", scheduler_id)
    assert bench.wait_finished(scheduler_id) == Status(FINISHED, info="CANCELLED: it was cancelled")


def test_a_node_that_fails(slurm: SlurmCluster, bench: SlurmBench) -> None:
    """It is not put into the queue again: its key runs once."""
    scheduler_id = bench.submit("exec sleep 60")
    bench.wait_state(scheduler_id, RUNNING)
    node = field(slurm, scheduler_id, "NodeList")
    slurm.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    assert bench.wait_finished(scheduler_id) == Status(FINISHED, info="NODE_FAIL: one of its nodes failed")


def test_out_of_time(slurm: SlurmCluster, bench: SlurmBench) -> None:
    """Slurm looks at the clock twice a minute."""
    scheduler_id = bench.submit("exec sleep 300")
    bench.wait_state(scheduler_id, RUNNING)
    slurm.run("scontrol", "update", f"jobid={scheduler_id}", "EndTime=now")
    status = bench.wait_state(scheduler_id, FINISHED, timeout=60)
    assert status == Status(FINISHED, info="TIMEOUT: it reached its wall time")


def test_preempted(slurm: SlurmCluster, bench: SlurmBench) -> None:
    victims = [bench.submit("exec sleep 60", bench.spec(str(n))) for n in range(len(slurm.nodes))]
    for victim in victims:
        bench.wait_state(victim, RUNNING)
    bench.submit("true", bench.spec("urgent", queue="urgent"))
    wait_until(
        lambda: any(s.state is FINISHED for s in bench.scheduler.statuses(victims).values()), 30, "one to be preempted"
    )
    ends = [status for status in bench.scheduler.statuses(victims).values() if status.state is FINISHED]
    assert ends == [Status(FINISHED, info="PREEMPTED: it had to make room for another job")]


# --- Slurm away, or forgetful


def test_away_says_nothing_and_back_it_knows_all(slurm: SlurmCluster, bench: SlurmBench) -> None:
    scheduler_id = bench.submit("exec sleep 60")
    bench.wait_state(scheduler_id, RUNNING)
    requests: list[Callable[[], object]] = [
        lambda: bench.status(scheduler_id),
        lambda: bench.submit("true", bench.spec("2")),
        lambda: bench.scheduler.cancel(scheduler_id),
    ]
    slurm.stop_controller()
    try:
        with ThreadPoolExecutor(len(requests)) as pool:  # each takes some seconds
            errors = [future.exception() for future in [pool.submit(request) for request in requests]]
    finally:
        slurm.start_controller()
    for error in errors:
        assert isinstance(error, SchedulerUnavailable)
        assert "contact slurm controller" in str(error)
    assert bench.status(scheduler_id).state is RUNNING
    bench.wait_finished(bench.submit("true", bench.spec("2")))


def test_one_that_does_not_answer_is_not_waited_for(
    slurm: SlurmCluster, bench: SlurmBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = SlurmScheduler(bench.qsubmit, poll_sec=POLL, grace=0.1, timeout=0.5)
    stand_in(tmp_path, monkeypatch, "squeue", "exec sleep 30")
    with pytest.raises(SchedulerUnavailable, match="squeue has not answered for"):
        scheduler.statuses(["1"])
    scheduler.close()


def test_without_slurm_it_says_what_to_look_at(bench: SlurmBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SchedulerUnavailable, match=r"no squeue on the PATH .* settings\.yml"):
        bench.status("1")


def test_what_slurm_has_forgotten_has_ended_after_a_while(slurm: SlurmCluster, bench: SlurmBench) -> None:
    scheduler_id = "4711"
    assert bench.status(scheduler_id) == Status(UNKNOWN, info="the scheduler does not know it")
    forgetful = SlurmScheduler(bench.qsubmit, poll_sec=POLL, grace=0.1, forget_sec=0)
    assert forgetful.statuses([scheduler_id])[scheduler_id].state is FINISHED
    forgetful.close()


def test_the_accounting_remembers_longer(
    slurm: SlurmCluster, bench: SlurmBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch, "sacct", "echo 'FAILED|3:0'")
    assert bench.status("4711") == Status(FINISHED, 3, "FAILED: exit code 3")
    stand_in(tmp_path, monkeypatch, "sacct", "echo 'CANCELLED by 1000|0:15'")
    assert bench.status("4711") == Status(FINISHED, info="CANCELLED: it was cancelled")
    stand_in(tmp_path, monkeypatch, "sacct", "echo 'RUNNING|0:0'")
    assert bench.status("4711").state is UNKNOWN


# --- what waits is changed


def test_what_waits_is_changed_or_stays_as_it_is(slurm: SlurmCluster, bench: SlurmBench) -> None:
    blocker = bench.submit("exec sleep 60", bench.spec("blocker", num_nodes=4))
    spec = bench.spec("1", num_nodes=2, wall_time_min=5)
    scheduler_id = bench.submit("echo $SLURM_JOB_NUM_NODES", spec)
    modify = bench.scheduler.modify

    def shape() -> list[str]:
        return [field(slurm, scheduler_id, name) for name in ("NumNodes", "TimeLimit", "Partition", "NumCPUs")]

    larger = bench.spec("1", num_nodes=3, wall_time_min=7, queue="long")
    for _ in range(2):  # the first answer may be lost
        modify(scheduler_id, spec, larger)
        assert shape() == ["3", "7:00", "long", "3"]
    for wanted, words in (
        (bench.spec("1", num_nodes=99, wall_time_min=7, queue="long"), "not available now"),
        (bench.spec("1", num_nodes=3, wall_time_min=9, queue="no-such"), "Invalid partition name"),
        (bench.spec("1", num_nodes=3, wall_time_min=7), "--partition cannot be taken back"),
        (bench.spec("1", num_nodes=3, wall_time_min=9, queue="long", exclusive="user"), "does not change --exclusive"),
    ):
        with pytest.raises(ModifyRefused, match=words):
            modify(scheduler_id, larger, wanted)
        assert shape() == ["3", "7:00", "long", "3"]
    modify(scheduler_id, larger, bench.spec("1", num_nodes=1, wall_time_min=7, queue="long", nice="10"))
    bench.wait_state(blocker, RUNNING)
    with pytest.raises(ModifyRefused, match="no longer pending"):
        modify(blocker, bench.spec("blocker", num_nodes=4), bench.spec("blocker", num_nodes=2))
    bench.scheduler.cancel(blocker)
    bench.wait_finished(scheduler_id)
    assert bench.logged() == ["1"]


def test_the_time_left_is_known_as_soon_as_it_runs(bench: SlurmBench) -> None:
    scheduler_id = bench.submit("exec sleep 60", bench.spec(wall_time_min=5))
    left = bench.wait_state(scheduler_id, RUNNING).time_left
    assert left is not None
    assert 270 < left <= 300


# --- a key is submitted once, whoever dies when


def stand_in(directory: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    """Have `text` run for this command. $REAL is the one it stands for."""
    directory = directory / "bin"
    directory.mkdir(exist_ok=True)
    if str(directory) not in os.environ["PATH"].split(":"):
        found = subprocess.run(["which", name], capture_output=True, text=True, check=True).stdout.strip()
        monkeypatch.setenv("REAL", found)
        monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    (directory / name).write_text(f"#!/bin/bash\n{text}\n")
    (directory / name).chmod(0o755)


SUBMITTER = """
import sys
from pathlib import Path
from balsam_exec.platform.schedulers import SlurmScheduler, SubmitSpec
directory = Path(sys.argv[1])
scheduler = SlurmScheduler(directory / "qsubmit", poll_sec=1, grace=1)
spec = SubmitSpec("1", num_nodes=1, wall_time_min=1, queue="", project="", log=directory / "1.log")
scheduler.submit(directory / "qsubmit" / "1.sh", spec)
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_while_sbatch_works(
    slurm: SlurmCluster, bench: SlurmBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """sbatch outlives the agent that called it, and ends its work: as long as it does nobody submits again."""
    before, after = tmp_path / "sbatch-began", tmp_path / "let-sbatch-go"
    wait = f"touch {before}; until [ -e {after} ]; do sleep 0.02; done"
    steps = [wait, '"$REAL" "$@"'] if when == "before" else ['out=$("$REAL" "$@")', wait, "echo $out"]
    stand_in(tmp_path, monkeypatch, "sbatch", "\n".join(steps))
    bench.script(bench.spec(), "echo run")
    submitter = subprocess.Popen([sys.executable, "-c", SUBMITTER, str(tmp_path)])
    wait_until(before.exists, 20, "sbatch to be called")
    submitter.send_signal(signal.SIGKILL)
    submitter.wait(10)
    with pytest.raises(SchedulerUnavailable, match="earlier submission"):
        bench.submit("echo run")
    after.touch()
    wait_until(lambda: bool((bench.qsubmit / "1.id").read_text()), 20, "sbatch to print its id")
    scheduler_id = bench.scheduler.find("1")
    assert scheduler_id is not None
    assert bench.submit("echo run") == scheduler_id
    bench.wait_finished(scheduler_id)
    assert bench.logged() == ["run"]


def test_an_id_that_nobody_read_is_found_by_the_comment(
    slurm: SlurmCluster, bench: SlurmBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine went down just after the job was submitted."""
    stand_in(tmp_path, monkeypatch, "sbatch", '"$REAL" "$@" > /dev/null; kill -9 $$')
    with pytest.raises(SchedulerUnavailable, match="signal 9"):
        bench.submit("echo run")
    assert (bench.qsubmit / "1.id").read_text() == ""
    scheduler_id = bench.scheduler.find("1")
    assert scheduler_id is not None
    assert bench.submit("echo run") == scheduler_id
    bench.wait_finished(scheduler_id)
    assert bench.logged() == ["run"]


def test_what_has_run_and_is_forgotten_does_not_run_again(bench: SlurmBench) -> None:
    (bench.qsubmit / "1.id").touch()
    bench.log.write_text("run\n")
    with pytest.raises(SubmitRefused, match="has run already"):
        bench.submit("echo run")


def test_an_sbatch_that_takes_too_long_is_not_disturbed(
    slurm: SlurmCluster, bench: SlurmBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = tmp_path / "go"
    stand_in(tmp_path, monkeypatch, "sbatch", f'until [ -e {go} ]; do sleep 0.02; done; "$REAL" "$@"')
    impatient = SlurmScheduler(bench.qsubmit, poll_sec=POLL, grace=0.1, timeout=0.2)
    spec = bench.spec()
    script = bench.script(spec, "echo run")
    with pytest.raises(SchedulerUnavailable, match="sbatch has not answered"):
        impatient.submit(script, spec)
    with pytest.raises(SchedulerUnavailable, match="earlier submission"):
        impatient.submit(script, spec)
    go.touch()
    wait_until(lambda: bool((bench.qsubmit / "1.id").read_text()), 20, "sbatch to print its id")
    bench.wait_finished(bench.submit("echo run"))
    assert bench.logged() == ["run"]
    impatient.close()


def test_greetings_of_a_site_are_not_ids() -> None:
    text = "Welcome to the machine of 2026\n12345\n--> Verifying: ok\n4711;cluster\n"
    assert SlurmScheduler.job_id.findall(text)[-1] == "4711"


# --- backfill windows


def test_idle_nodes_are_a_window(slurm: SlurmCluster, bench: SlurmBench) -> None:
    assert bench.scheduler.windows() == [Window("debug", 4, 60), Window("long", 4, 360), Window("urgent", 4, 60)]
    bench.wait_state(bench.submit("exec sleep 60"), RUNNING)
    assert Window("debug", 3, 60) in bench.scheduler.windows()


def test_windows_end_when_others_want_the_nodes() -> None:
    idle = "debug|3|1:00:00\ndebug|1|1:00:00\nlong|4|2-00:00:00\nfree|2|infinite\nsoon|1|30:00\n"
    pending = "long|8200\nlong,soon|1010\ndebug|N/A\nelsewhere|2000\n"
    assert windows(idle, pending, now=1000) == [Window("debug", 4, 60), Window("free", 2, None)]
    assert windows(idle, "long|8200\n", now=1000)[1] == Window("long", 4, 120)
    assert windows("", "long|8200\n", now=1000) == []
