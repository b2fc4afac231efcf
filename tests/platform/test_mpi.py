"""Starting the ranks of a job."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from balsam_exec.model.errors import ConfigurationError
from balsam_exec.model.jobs import Resources
from balsam_exec.platform.mpi import Part, launch_prefix


def program(path: Path) -> str:
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def test_mpiexec_is_found_on_the_path_before_it_is_beside_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "venv/bin/python"
    monkeypatch.setattr(sys, "executable", str(python))
    two = Resources(ranks_per_node=2)
    on_path = {"PATH": str(tmp_path / "module/bin")}
    with pytest.raises(ConfigurationError, match="wants 2 ranks and there is no mpiexec"):
        launch_prefix(two, on_path)
    assert launch_prefix(two, on_path, path_may_change=True) == ["mpiexec", "-n", "2"]
    beside = program(python.parent / "mpiexec")
    assert launch_prefix(two, on_path) == [beside, "-n", "2"]
    loaded = program(tmp_path / "module/bin/mpiexec")
    assert launch_prefix(two, on_path) == [loaded, "-n", "2"]


def test_options_for_the_launcher() -> None:
    environ = {"PATH": ""}
    wanted = Resources(num_nodes=2, ranks_per_node=3, launch_params={"-bind-to": "core", "-l": ""})
    assert launch_prefix(wanted, environ)[1:] == ["-n", "6", "-bind-to", "core", "-l"]


def test_real_ranks_without_any_path() -> None:
    """As MPI and mpi4py come from PyPI, for an agent that was started by the interpreter's full path."""
    prefix = launch_prefix(Resources(ranks_per_node=3), {"PATH": "/usr/bin:/bin"})
    code = "from mpi4py import MPI; w = MPI.COMM_WORLD; all = w.gather(w.rank); w.rank or print(all)"
    done = subprocess.run([*prefix, sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[0, 1, 2]\n"


def test_the_mpi_of_an_interpreter_comes_first(tmp_path: Path) -> None:
    beside = program(tmp_path / "env/bin/mpiexec")
    loaded = program(tmp_path / "module/bin/mpiexec")
    environ = {"PATH": str(tmp_path / "module/bin")}
    two = Resources(ranks_per_node=2)
    assert launch_prefix(two, environ, python=str(tmp_path / "env/bin/python"))[0] == beside
    assert launch_prefix(two, environ, python=str(tmp_path / "other/bin/python"))[0] == loaded


def test_srun(tmp_path: Path) -> None:
    srun = program(tmp_path / "bin/srun")
    job = Resources(num_nodes=2, ranks_per_node=3, launch_params={"--mpi": "pmi2"})
    assert launch_prefix(job, {"PATH": str(tmp_path / "bin")}, launcher="srun") == [
        *(srun, "--nodes", "2", "--ntasks", "6", "--ntasks-per-node", "3"),
        *("--overlap", "--overcommit", "--cpu-bind=none", "--kill-on-bad-exit=1", "--input=none", "--mpi", "pmi2"),
    ]


def test_a_rank_that_is_not_told_which_it_is_is_not_bound_by_chance(tmp_path: Path) -> None:
    program(tmp_path / "bin/mpiexec")
    path = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}
    words = launch_prefix(Resources(ranks_per_node=2), path, [Part(binding=((0,), (0,)))])[3:]
    inherited = {**path, "SLURM_LOCALID": "0"}
    done = subprocess.run([*words, "true"], env=inherited, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "does not tell the ranks of a node" in done.stderr


def test_affinity_is_no_option_of_the_launcher() -> None:
    job = Resources(ranks_per_node=2, launch_params={"cpu_affinity": "none", "-l": ""})
    assert launch_prefix(job, {"PATH": ""})[1:] == ["-n", "2", "-l"]


def test_without_taskset_ranks_cannot_be_bound(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="needs taskset"):
        launch_prefix(Resources(ranks_per_node=2), {"PATH": str(tmp_path)}, [Part(binding=((0,), (0,)))])


def test_real_ranks_on_their_cores() -> None:
    cpus = sorted(os.sched_getaffinity(0))
    binding = (tuple(cpus[-1:]), tuple(cpus[:2]))
    prefix = launch_prefix(Resources(ranks_per_node=2), {"PATH": "/usr/bin:/bin"}, [Part(binding=binding)])
    code = "import os; os.write(1, f'{os.environ[\"PMI_RANK\"]} {sorted(os.sched_getaffinity(0))};'.encode())"
    done = subprocess.run([*prefix, sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert sorted(done.stdout.split(";"))[1:] == [f"{rank} {list(cpus)}" for rank, cpus in enumerate(binding)]
