"""The libEnsemble campaigns at a small size: what they find, what they kill, and that nothing is left of them."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from balsam_exec.client.service import Service
from balsam_exec.embedded import Deployment
from balsam_exec.model.jobs import JobRecord
from balsam_exec.model.states import BatchJobState, JobState
from tests.support.processes import MARKER, Leftover, marked_processes, wait_gone, wait_until

FOLDER = Path(__file__).parents[2] / "integrations" / "libensemble"
SMALL = ("--sims", "16", "--cells", "112", "--patience", "2.5")

#: Seconds that a campaign has, which takes ten on a quiet machine.
DEADLINE = 240
pytestmark = pytest.mark.timeout(DEADLINE + 60)

# The calc statuses of libEnsemble.
COMPLETED, KILLED_BY_WORKER, KILLED_BY_MANAGER = 35, 31, 21


def start(script: str, directory: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(FOLDER / script), "--directory", str(directory), *options]
    environ = {**os.environ, **environment}
    # In a process group of its own, as a terminal makes one for each command.
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ, start_new_session=True
    )


def left() -> list[Leftover]:
    """The processes that this test has started, whoever their parents are, once they had time to end."""
    mine = [p for p in marked_processes(os.environ[MARKER]) if p.test == os.environ["PYTEST_CURRENT_TEST"]]
    return [p for p in mine if not wait_gone(p.pid, timeout=10)]


def history(directory: Path) -> Any:
    """The runs as libEnsemble has saved them."""
    (path,) = directory.glob("heat_history_length=*.npy")
    H = np.load(path)
    return H[H["sim_ended"]]


def check_findings(H: Any) -> None:
    """The minimum is where the series solution has it; both kinds of kills happened, where they had to."""
    best = H[np.nanargmin(H["f"])]
    assert best["k"] == pytest.approx([0.6, 0.25], abs=0.06)
    assert best["f"] < 0.04
    status = {tuple(run["k"]): run["status"] for run in H}
    assert status[1.0, 1.0] == KILLED_BY_WORKER  # diverges
    assert status[0.02, 0.02] == KILLED_BY_MANAGER  # takes too long
    assert (H["status"] == COMPLETED).sum() >= 6


def check_jobs(service: Service, H: Any) -> None:
    """What libEnsemble believes is what happened: its kills were of jobs that ran, and ended these."""
    jobs = all_jobs(service)
    for run in H:
        completed = run["status"] == COMPLETED
        job = jobs[run["job"]]
        assert job.state is (JobState.JOB_FINISHED if completed else JobState.USER_KILLED), run
        assert (job.ranks_per_node, job.num_nodes) == (2, 1)
    killed = [run["job"] for run in H if run["k"].tolist() in ([1.0, 1.0], [0.02, 0.02])]
    for job_id in killed:
        states = [event.to_state for event in service.events(subject_id=[job_id], kind=["job"]).results]
        assert "RUNNING" in states
    assert allocation_states(service) == [BatchJobState.FINISHED]


def all_jobs(service: Service) -> dict[int, JobRecord]:
    return {job.id: job for job in service.jobs(limit=1000).results}


def allocation_states(service: Service) -> list[BatchJobState]:
    return [allocation.state for allocation in service.batch_jobs().results]


def test_the_campaign_finds_the_plate(tmp_path: Path) -> None:
    campaign = start("campaign.py", tmp_path / "run", *SMALL)
    out, err = campaign.communicate(timeout=DEADLINE)
    assert campaign.returncode == 0, out + err
    assert left() == []
    assert "plate │  0.6000 │  0.2500" in out
    assert "which is finished." in out
    for plot in ("misfit.png", "residuals.png"):
        assert (tmp_path / "run" / plot).read_bytes().startswith(b"\x89PNG")
    H = history(tmp_path / "run")
    check_findings(H)
    log = (tmp_path / "run" / "ensemble.log").read_text()
    assert "(USER_KILLED)\n" in log
    assert "BAD TERMINATION" not in log  # what mpiexec says of ranks that were killed
    with Deployment.start(tmp_path / "run" / "balsam", temporary=True) as deployment:
        check_jobs(deployment.service(), H)


SPY = """
import os, runpy, sys

site, log, script = sys.argv.pop(1), os.open(sys.argv.pop(1), os.O_WRONLY | os.O_CREAT | os.O_APPEND), sys.argv[1]

def note(event, arguments):
    if event in ("open", "os.listdir", "os.scandir", "os.remove", "os.rename", "os.symlink"):
        path = os.fsdecode(arguments[0]) if isinstance(arguments[0], (str, bytes)) else ""
        if os.path.abspath(path).startswith(site):
            os.write(log, f"{event} {path}\\n".encode())

sys.addaudithook(note)
sys.argv.pop(0)
sys.path[0] = os.path.dirname(script)
runpy.run_path(script, run_name="__main__")
"""


def test_the_remote_campaign_finds_it_too_and_touches_nothing_there(tmp_path: Path) -> None:
    site = tmp_path / "run" / "elsewhere" / "site"
    spied = tmp_path / "spied"
    script = str(FOLDER / "remote.py")
    command = [sys.executable, "-c", SPY, str(site), str(spied), script, "--directory", str(tmp_path / "run"), *SMALL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert left() == []
    # Its settings are the owner's, who is played by the same program; and show that the spy sees what there is.
    assert {line.split()[1] for line in spied.read_text().splitlines()} == {str(site / "settings.yml")}
    H = history(tmp_path / "run")
    check_findings(H)
    assert (site / "data" / "heat" / "run1" / "sim0000" / "heat.out").exists()
    with Deployment.start(tmp_path / "run" / "elsewhere", temporary=True) as deployment:
        check_jobs(deployment.service(), H)


@pytest.mark.parametrize("sign", ["heat/compile", "heat/run1/sim0002"], ids=["while it compiles", "while it runs"])
def test_ctrl_c_leaves_nothing_running(tmp_path: Path, sign: str) -> None:
    campaign = start("campaign.py", tmp_path / "run", "--sims", "1000", "--cells", "112")
    data = tmp_path / "run" / "balsam" / "site" / "data"
    wait_until(lambda: (data / sign).exists() or campaign.poll() is not None, timeout=60, what=sign)
    os.killpg(campaign.pid, signal.SIGINT)  # as a terminal does
    out, err = campaign.communicate(timeout=DEADLINE)
    assert campaign.returncode == 130, out + err
    assert "Interrupted" in err
    assert "Traceback" not in err
    assert left() == []
    with Deployment.start(tmp_path / "run" / "balsam", temporary=True) as deployment:
        service = deployment.service()
        runs = [job for job in all_jobs(service).values() if job.workdir.startswith("heat/run1")]
        assert {job.state for job in runs} <= {JobState.JOB_FINISHED, JobState.USER_KILLED}
        assert allocation_states(service) == [BatchJobState.FINISHED]


def test_without_a_compiler_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "cc").write_text("#!/bin/sh\necho 'cc: not today' >&2\nexit 127\n")
    (tmp_path / "cc").chmod(0o755)
    campaign = start("campaign.py", tmp_path / "run", *SMALL, PATH=f"{tmp_path}:{os.environ['PATH']}")
    out, err = campaign.communicate(timeout=DEADLINE)
    assert campaign.returncode == 1, out + err
    assert "is there a C compiler (apt-get install gcc libc6-dev)?" in err
    assert "cc: not today" in err
    assert "Traceback" not in err


# -- its parts ---------------------------------------------------------------------------------------------------


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """A module of the campaign."""
    monkeypatch.syspath_prepend(FOLDER)
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and Path(sys.modules[name].__file__ or "").parent == FOLDER:
            del sys.modules[name]


def run_heat(program: Path, ranks: int, *words: object) -> str:
    mpiexec = Path(sys.executable).with_name("mpiexec")
    command = [str(mpiexec), "-n", str(ranks), str(program), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.fixture(scope="module")
def heat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("heat") / "heat"
    mpicc = Path(sys.executable).with_name("mpicc")
    strict = ["-O2", "-Wall", "-Wextra", "-Werror", "-std=gnu11"]
    subprocess.run([mpicc, *strict, FOLDER / "heat.c", "-o", program, "-lm"], check=True, timeout=60)
    return program


def test_the_mini_app_solves_the_heat_equation_whatever_the_ranks(
    heat: Path, part: Callable[[str], ModuleType]
) -> None:
    plate = part("plate")
    said = {run_heat(heat, ranks, *plate.TRUE, 64, plate.time_step(64), 1) for ranks in (1, 2, 3)}
    (text,) = said
    rows = np.loadtxt(text.splitlines())
    assert (np.diff(rows[:, 1]) < 0).all()
    assert plate.cooling_times(rows[:, 0], rows[:, 2:].T) == pytest.approx(plate.measured(), rel=0.01)


def test_the_mini_app_diverges_when_the_step_is_too_long(heat: Path, part: Callable[[str], ModuleType]) -> None:
    plate, simf = part("plate"), part("heat_simf")
    task = Written(run_heat(heat, 2, 1, 1, 112, plate.time_step(112), 0.1))
    history = simf.read_history(task)
    assert simf.diverges(history)
    assert len(history) > 19  # it goes on to the end, even if all probes happen to be far below zero
    assert not simf.diverges(simf.read_history(Written(run_heat(heat, 2, 0.9, 0.4, 64, plate.time_step(64), 0.1))))


@pytest.mark.parametrize("words", [(), (1, 1, 62, 1e-5, 1), (1, 1, 16, 1e-5, 1), (0, 1, 64, 1e-5, 1)])
def test_the_mini_app_refuses_what_it_cannot_do(heat: Path, words: tuple[float, ...]) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run_heat(heat, 2, *words)
    assert "usage" in caught.value.stderr


class Written:
    """A task of which this is the output so far."""

    def __init__(self, text: str) -> None:
        self._text = text

    def stdout_exists(self) -> bool:
        return bool(self._text)

    def read_stdout(self) -> str:
        return self._text


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("", 0),
        ("# time", 0),
        ("# time energy\n", 0),
        ("#\n0 1 1 1 1\n", 1),
        ("#\n0 1 1 1 1\n1 0.5 0.", 1),
        ("#\n0 1 1 1 1\n1 0.5 0.5 0.5 0.5\n#\n0 1 1 1 1\n", 1),
    ],
    ids=["nothing", "half a heading", "heading", "row", "half a row", "second start"],
)
def test_the_rows_of_the_last_start_are_read_without_half_a_line(
    part: Callable[[str], ModuleType], text: str, rows: int
) -> None:
    assert part("heat_simf").read_history(Written(text)).shape == (rows, 5)


def test_the_surrogate_knows_what_it_was_told_and_doubts_the_rest(part: Callable[[str], ModuleType]) -> None:
    random = np.random.default_rng(0)
    points = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    values = np.column_stack([points.sum(1), points[:, 0] ** 2])
    surrogate = part("surrogate").Surrogate(points, values)
    draws = np.array([surrogate.draw(np.vstack([points, [[1.0, 1.0]]]), random) for _ in range(20)])
    spread = draws.std(0)
    assert draws.mean(0)[:4] == pytest.approx(values, abs=0.01)
    assert spread[:4].max() < 0.01 < spread[4].min()


def test_the_generator_needs_few_runs(part: Callable[[str], ModuleType]) -> None:
    random, target = np.random.default_rng(0), np.array([0.3, 0.8])

    def run(points: Any) -> Any:
        return np.log(0.1 + points @ np.array([[1.0, 4.0, 0.0], [1.0, 1.0, 1.0]]))

    points = np.array([[0.5, 0.5], [1.0, 0.0], [0.0, 1.0]])
    for _ in range(10):
        points = np.vstack([points, part("heat_genf").propose(points, run(points), run(target), random)])
    assert np.abs(points - target).max(1).min() < 0.01


def runs(completed: int, running: list[float]) -> Any:
    """A history of so many runs that took 10 s, and others that have run for so many seconds."""
    fields = [("sim_started", bool), ("sim_ended", bool), ("cancel_requested", bool), ("f", float)]
    H = np.zeros(completed + len(running) + 1, dtype=[*fields, ("sim_started_time", float), ("sim_ended_time", float)])
    H["sim_started"][:-1] = True
    H["sim_started_time"] = time.time() - np.array([30.0] * completed + [*running, 0.0])
    H["sim_ended"][:completed] = True
    H["sim_ended_time"][:completed] = H["sim_started_time"][:completed] + 10
    return H


def allocate(part: Callable[[str], ModuleType], H: Any) -> tuple[Any, ...]:
    user = {"user": {"async_return": True, "patience": 3.0}}
    busy = {"sim_max_given": True}
    found: tuple[Any, ...] = part("heat_allocf").only_persistent_gens_in_time([], H, {}, {}, user, {}, busy)
    return found


@pytest.mark.parametrize(
    ("completed", "cancelled"), [(3, [False, False, False, False, True, False]), (2, [False] * 5)], ids=["3", "2"]
)
def test_what_takes_too_long_is_cancelled_once_it_is_known_what_is_long(
    part: Callable[[str], ModuleType], completed: int, cancelled: list[bool]
) -> None:
    H = runs(completed, [20.0, 40.0])
    assert allocate(part, H)[:2] == ({}, {})
    assert H["cancel_requested"].tolist() == cancelled


@pytest.mark.parametrize("running", [[1.0], []])
def test_an_interrupt_cancels_all_and_ends_when_nothing_runs(
    part: Callable[[str], ModuleType], running: list[float]
) -> None:
    H = runs(1, running)
    part("heat_allocf").interrupted.set()
    assert allocate(part, H) == ({}, {}, int(not running))
    assert H["cancel_requested"].tolist() == [False] + [True] * (len(running) + 1)


def test_plots_are_left_out_where_they_cannot_be(
    part: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    campaign, plate = part("campaign"), part("plate")
    fields = [("sim_id", int), ("sim_ended", bool), ("k", float, 2), ("f", float), ("times", float, 9), ("status", int)]
    H = np.array([(0, True, plate.TRUE, 0.0, plate.measured(), COMPLETED)], dtype=fields)
    monkeypatch.setattr(campaign, "find_spec", lambda name: None)
    campaign.show(H, tmp_path, campaign.Console())
    campaign.show(H[:0], tmp_path, campaign.Console())
    assert capsys.readouterr().out.count("No plots: pip install matplotlib") == 1
    assert list(tmp_path.iterdir()) == []
