"""libEnsemble's own tests of its MPIExecutor, run on ours.

They are in its source distribution, of which nothing is in this repository: `make test-libensemble` fetches it from
PyPI once and keeps it in $XDG_CACHE_HOME (~/.cache). Where it is not there, or no compiler for MPI, they are skipped.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest

HERE = Path(__file__).parent
BESIDE = Path(sys.executable).parent
DEADLINE = 100
FETCH_SEC = 180
#: Set by `make test-libensemble`: plain tests do not go to the network.
FETCH = "BALSAM_TEST_FETCH"

pytestmark = pytest.mark.timeout(DEADLINE + FETCH_SEC)


@pytest.fixture(scope="session")
def source() -> Path:
    """The directory of libEnsemble's tests, as they are distributed."""
    name = f"libensemble-{version('libensemble')}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "balsam-exec-tests"
    if not (cache / name).exists():
        if FETCH not in os.environ:
            pytest.skip(f"{name} was not fetched: make test-libensemble")
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # against other workers of the tests
            if not (cache / name).exists():
                fetch(name, cache)
    return cache / name / "libensemble" / "tests"


def fetch(name: str, cache: Path) -> None:
    with tempfile.TemporaryDirectory(dir=cache) as directory:
        wanted = ["--no-deps", "--no-binary", "libensemble", "--dest", directory, name.replace("-", "==")]
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *wanted]
        got = subprocess.run(pip, capture_output=True, text=True, timeout=FETCH_SEC, check=False)
        archive = Path(directory, f"{name}.tar.gz")
        if got.returncode != 0 or not archive.exists():
            pytest.skip(f"{name} cannot be fetched: {got.stderr.strip()[-200:]}")
        with tarfile.open(archive) as tar:
            tar.extractall(directory, filter="data")
        Path(directory, name).rename(cache / name)


@pytest.fixture
def workplace(source: Path, tmp_path: Path) -> Path:
    """A copy of what the scripts want around them, with the program of one of them compiled."""
    compiler = shutil.which("mpicc", path=f"{BESIDE}:{os.environ['PATH']}")
    if compiler is None or shutil.which("cc") is None:
        pytest.skip("no C compiler for MPI: apt-get install gcc; pip install mpich")
    for part in ("functionality_tests", "unit_tests/simdir", "forces_app"):
        shutil.copytree(source / part, tmp_path / part)
    forces = source / "scaling_tests" / "forces" / "forces_app" / "forces.c"
    program = tmp_path / "forces_app" / "forces.x"
    subprocess.run([compiler, "-O2", "-o", program, forces, "-lm"], check=True, timeout=DEADLINE)
    return tmp_path / "functionality_tests"


@pytest.mark.usefixtures("deployment", "allocation")
@pytest.mark.parametrize(
    ("script", "comms", "workers", "sims"),
    [
        ("test_executor_simple", "local", 3, 15),
        # Several workers would have to be equally fast: each call of the simulation has its turn in each of them.
        ("test_executor_hworld_pass_fail", "local", 1, 5),
        ("test_executor_hworld_pass_fail", "mpi", 1, 5),
        ("test_executor_hworld_timeout", "local", 3, 0),
        ("test_executor_forces_tutorial", "local", 3, 8),
        ("test_executor_forces_tutorial_2", "local", 3, 8),
        ("test_executor_forces_tutorial_2", "mpi", 3, 8),
    ],
)
def test_scripts_for_their_mpi_executor(script: str, comms: str, workers: int, sims: int, workplace: Path) -> None:
    environment = {**os.environ, "PATH": f"{BESIDE}:{os.environ['PATH']}", "PYTHONPATH": str(HERE.parents[2])}
    command = [sys.executable, str(HERE / "as_mpi_executor.py"), f"{script}.py"]
    if comms == "mpi":
        command = ["mpiexec", "-n", str(workers + 1), *command]
    else:
        command += ["--nworkers", str(workers)]
    done = subprocess.run(
        command, cwd=workplace, env=environment, capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    stats = (workplace / "libE_stats.txt").read_text()
    assert len([line for line in stats.splitlines() if "sim Time" in line]) >= sims
    if "forces" in script:  # it would not notice
        assert stats.count("Status: Completed") == sims, stats
        assert len(list(workplace.rglob("forces.stat"))) == sims
