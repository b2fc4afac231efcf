"""The hosts of an allocation, as each batch scheduler tells."""

from __future__ import annotations

from pathlib import Path

import pytest

from balsam_exec.model.errors import ConfigurationError
from balsam_exec.platform.allocation import Allocation, find_allocation, hosts_in, part_of_allocation


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of commands, the only one on the PATH."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    return directory


def command(directory: Path, name: str, script: str) -> None:
    (directory / name).write_text(f"#!/bin/bash\n{script}\n")
    (directory / name).chmod(0o755)


def test_this_machine_where_no_scheduler_speaks() -> None:
    found = find_allocation({}, "laptop")
    assert found == Allocation(("laptop",), "laptop", None)
    assert not found.is_scheduled


def test_slurm(commands: Path) -> None:
    command(commands, "scontrol", '[ "$*" = "show hostnames n[01-03]" ] && printf "%s\\n" n01 n02 n03')
    environ = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[01-03]", "SLURMD_NODENAME": "n02"}
    assert find_allocation(environ, "front") == Allocation(("n01", "n02", "n03"), "n02", "7")


def test_one_node_of_slurm_needs_no_command(commands: Path) -> None:
    environ = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n01", "SLURMD_NODENAME": "n01"}
    assert find_allocation(environ, "n01.cluster") == Allocation(("n01",), "n01", "7")


@pytest.mark.parametrize("script", [None, "echo no such host >&2; exit 1"])
def test_hosts_that_cannot_be_found_out(commands: Path, script: str | None) -> None:
    if script:
        command(commands, "scontrol", script)
    why = "no such host" if script else "No such file"
    with pytest.raises(ConfigurationError, match=f"scontrol show hostnames n.*{why}"):
        find_allocation({"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[01-03]"}, "n01")


def test_pbs(tmp_path: Path) -> None:
    file = tmp_path / "nodes"
    file.write_text("x3.hsn.cm\nx3.hsn.cm\nx4.hsn.cm\nx4.hsn.cm\n")
    environ = {"PBS_JOBID": "12.server", "PBS_NODEFILE": str(file)}
    assert find_allocation(environ, "x4") == Allocation(("x3.hsn.cm", "x4.hsn.cm"), "x4.hsn.cm", "12.server")
    file.unlink()
    with pytest.raises(ConfigurationError, match="cannot read the hosts"):
        find_allocation(environ, "x4")


def test_lsf(tmp_path: Path) -> None:
    """On a launch node no host of the allocation is here."""
    file = tmp_path / "hosts"
    file.write_text("\n".join(["batch5", *["h41n08"] * 42, *["h41n09"] * 42]))
    environ = {"LSB_JOBID": "99", "LSB_DJOB_HOSTFILE": str(file)}
    assert find_allocation(environ, "batch5") == Allocation(("h41n08", "h41n09"), None, "99")


def test_flux(commands: Path) -> None:
    command(commands, "flux", '[ "$*" = "hostlist --expand local" ] && echo f1 f2')
    assert find_allocation({"FLUX_JOB_ID": "ƒ2"}, "f1") == Allocation(("f1", "f2"), "f1", "ƒ2")


@pytest.mark.parametrize(
    ("lines", "hosts"),
    [
        ([], ()),
        (["a", "b"], ("a", "b")),
        (["a", "a", "b", ""], ("a", "b")),
        (["a", "b", "b"], ("b",)),
        (["b", "b", "a", "a"], ("b", "a")),
    ],
)
def test_hosts_by_their_slots(lines: list[str], hosts: tuple[str, ...]) -> None:
    assert hosts_in(lines) == hosts


def test_a_part_of_an_allocation() -> None:
    environ = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[01-09]", "SLURMD_NODENAME": "n02"}
    assert part_of_allocation((), environ, "box") == Allocation(("n02",), "n02", "7")
    assert part_of_allocation(("n01", "n02"), environ, "box") == Allocation(("n01", "n02"), "n02", "7")
    assert part_of_allocation(("n03", "n04"), environ, "box") == Allocation(("n03", "n04"), None, "7")
