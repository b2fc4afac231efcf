"""Starting the ranks of a job."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from balsam_exec.model.errors import ConfigurationError
from balsam_exec.model.jobs import Resources
from balsam_exec.platform.mpi import Part, check_launcher, check_template, launch_prefix, node_launcher


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


# --- several nodes

PAIR = [Part("one"), Part("two")]


def said(directory: Path, words: str) -> dict[str, str]:
    """A PATH with an mpiexec that says this of itself."""
    path = Path(program(directory / "mpiexec"))
    path.write_text(f"#!/bin/sh\necho '{words}'\n")
    return {"PATH": f"{directory}:/usr/bin:/bin"}


@pytest.mark.parametrize("version", ["HYDRA build details:", "mpiexec version 1.2.3 (PALS)"])
def test_mpich_and_its_kin_are_told_the_hosts(tmp_path: Path, version: str) -> None:
    job = Resources(num_nodes=2, ranks_per_node=3, launch_params={"--depth": "4"})
    words = launch_prefix(job, said(tmp_path / "bin", version), PAIR)
    assert words[1:] == ["-n", "6", "--ppn", "3", "--hosts", "one,two", "--depth", "4"]


@pytest.mark.parametrize("version", ["mpiexec (OpenRTE) 4.1.4", "mpiexec (Open MPI) 5.0.1", "prterun (PRRTE) 3.0"])
def test_open_mpi_is_told_the_slots_of_hosts_and_which_variables_to_hand_on(tmp_path: Path, version: str) -> None:
    own = {"SLURMD_NODENAME": "a", "SLURM_NODEID": "0", "OMPI_MCA_x": "1", "HOSTNAME": "a", "BASH_FUNC_f%%": "()"}
    environ = {**said(tmp_path / "bin", version), "MINE": "1", "BALSAM_TOKEN": "secret", **own}
    words = launch_prefix(Resources(num_nodes=2, ranks_per_node=3), environ, PAIR)
    handed_on = ["-x", "PATH", "-x", "MINE", "-x", "BALSAM_TOKEN"]
    assert words[1:] == ["-n", "6", "--host", "one:3,two:3", *handed_on]


def test_an_mpiexec_that_does_not_run(tmp_path: Path) -> None:
    environ = said(tmp_path / "bin", "")
    (tmp_path / "bin/mpiexec").write_text("#!/no/such/shell\n")
    with pytest.raises(ConfigurationError, match="does not say which MPI"):
        launch_prefix(Resources(num_nodes=2), environ, PAIR)


def test_srun_is_told_the_hosts_and_a_name(tmp_path: Path) -> None:
    program(tmp_path / "bin/srun")
    job = Resources(num_nodes=2)
    words = launch_prefix(job, {"PATH": str(tmp_path / "bin")}, PAIR, "srun", step="balsam-7.1")
    assert words[1:9] == [
        *("--nodes", "2", "--ntasks", "2", "--ntasks-per-node", "1", "--nodelist=one,two", "--job-name=balsam-7.1"),
    ]


TEMPLATE = "jsrun -n {{ ranks }} -r {{ ranks_per_node }} -c {{ cores_per_rank }} -h {{ hosts | join(',') }} -d 'a b'"


def test_a_template(tmp_path: Path) -> None:
    jsrun = program(tmp_path / "bin/jsrun")
    job = Resources(num_nodes=2, ranks_per_node=3, threads_per_rank=4, launch_params={"-X": "1"})
    words = launch_prefix(job, {"PATH": str(tmp_path / "bin")}, PAIR, TEMPLATE)
    assert words == [jsrun, *("-n", "6", "-r", "3", "-c", "4", "-h", "one,two", "-d", "a b", "-X", "1")]
    with pytest.raises(ConfigurationError, match="there is no jsrun on the PATH"):
        launch_prefix(job, {"PATH": ""}, PAIR, TEMPLATE)


def test_launchers_that_settings_may_name() -> None:
    assert check_launcher("srun") == "srun"
    assert check_launcher(TEMPLATE) == check_template(TEMPLATE) == TEMPLATE
    for wrong, why in (
        ("mpirun", "neither mpiexec nor srun"),
        ("aprun -n {{ rank }}", "'rank' is undefined"),
        ("aprun {{ ranks", "unexpected end"),
        ("aprun '{{ ranks }}", "No closing quotation"),
        ("{{ '' }}", "names no program"),
        ("aprun {{ ranks + 'x' }}", "unsupported operand"),
        ("aprun {{ ranks // 0 }}", "division"),
    ):
        with pytest.raises(ValueError, match=why):
            check_launcher(wrong)


def ranks_on(parts: list[Part], launcher: str, directory: Path, **environ: str) -> str:
    """What the words behind the launcher make of a rank with these variables."""
    program(directory / launcher)
    path = {"PATH": f"{directory}:/usr/bin:/bin"}
    words = launch_prefix(Resources(num_nodes=len(parts)), path, parts, launcher)
    behind = words[words.index("bash") :] if "bash" in words else []
    code = f"{sys.executable} -c 'import os; print(os.environ.get(\"GPU\"), sorted(os.sched_getaffinity(0)))'"
    environ = {**path, **environ}
    done = subprocess.run(
        [*behind, "bash", "-c", code], env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout.strip() or done.stderr.strip()


def test_each_rank_finds_what_it_has_of_its_node(tmp_path: Path) -> None:
    """Where the shares differ from node to node; by the node's name, with or without its domain."""
    cpus = sorted(os.sched_getaffinity(0))
    first, second = (cpus[0],), (cpus[-1],)
    parts = [Part("one.cluster", {"GPU": "0,1"}, (first,)), Part("two.cluster", {"GPU": "2 3"}, (second,))]
    here = {"MPI_LOCALRANKID": "0"}
    assert ranks_on(parts, "mpiexec", tmp_path / "a", SLURMD_NODENAME="one", **here) == f"0,1 {list(first)}"
    assert ranks_on(parts, "mpiexec", tmp_path / "b", SLURMD_NODENAME="two.cluster", **here) == f"2 3 {list(second)}"
    lost = ranks_on(parts, "mpiexec", tmp_path / "c", SLURMD_NODENAME="three", **here)
    assert lost.endswith("this node, three, is none of the job's")


def test_equal_shares_need_no_shell_but_for_srun(tmp_path: Path) -> None:
    """Which sets the variables of GPUs as it sees fit."""
    parts = [Part("one", {"GPU": "1"}), Part("two", {"GPU": "1"})]
    everywhere = sorted(os.sched_getaffinity(0))
    assert ranks_on(parts, "mpiexec", tmp_path / "a", GPU="inherited") == f"inherited {everywhere}"
    assert ranks_on(parts, "srun", tmp_path / "b", GPU="its own") == f"1 {everywhere}"


# --- a process on each node


def test_in_slurm_srun_starts_a_process_on_each_node(tmp_path: Path) -> None:
    srun = program(tmp_path / "bin/srun")
    environ = {"PATH": str(tmp_path / "bin"), "SLURM_JOB_ID": "7"}
    made = node_launcher(["one", "two"], environ)
    assert made.hands_on_stdin
    assert made.words[:6] == [
        *(srun, "--overlap", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--nodelist=one,two"),
    ]


def test_elsewhere_what_starts_ranks_does(tmp_path: Path) -> None:
    environ = said(tmp_path / "bin", "HYDRA")
    made = node_launcher(["one", "two"], environ)
    assert not made.hands_on_stdin
    assert made.words[1:] == ["-n", "2", "--ppn", "1", "--hosts", "one,two"]
    pdsh = program(tmp_path / "other/pdsh")
    environ = {"PATH": str(tmp_path / "other"), "SLURM_JOB_ID": "7"}
    made = node_launcher(["one", "two"], environ, template="pdsh -w {{ hosts | join(',') }} -N {{ num_nodes }}")
    assert made.words == [pdsh, "-w", "one,two", "-N", "2"]
