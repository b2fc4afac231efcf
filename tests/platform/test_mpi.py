"""Starting the ranks of a job."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from balsam_exec.model.errors import ConfigurationError
from balsam_exec.model.jobs import Resources
from balsam_exec.platform.mpi import launch_prefix


def program(path: Path) -> str:
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def test_a_single_rank_needs_no_launcher() -> None:
    assert launch_prefix(Resources(threads_per_rank=4), {"PATH": ""}) == []


def test_mpiexec_is_found_on_the_path_before_it_is_beside_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "venv/bin/python"
    monkeypatch.setattr(sys, "executable", str(python))
    two = Resources(ranks_per_node=2)
    on_path = {"PATH": str(tmp_path / "module/bin")}
    with pytest.raises(ConfigurationError, match="wants 2 ranks and there is no mpiexec"):
        launch_prefix(two, on_path)
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
