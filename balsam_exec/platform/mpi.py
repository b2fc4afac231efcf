"""How the ranks of a job are started. Here: by mpiexec or srun, from one node."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Literal

from balsam_exec.model.errors import ConfigurationError
from balsam_exec.model.jobs import CPU_AFFINITY, Resources

Launcher = Literal["mpiexec", "srun"]

#: Variables for Open MPI 4 and 5. By itself it binds the ranks of each job to the same first cores, whoever has them
#: already, and refuses more ranks than there are cores; which job runs where has been decided when it is asked.
#: MPICH does neither.
ENVIRONMENT = {
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}

#: Run by each rank: where it is to stay, by its number on its node. One way for all MPIs and their versions, which
#: have no common option for it, and some count cores where the kernel counts hardware threads.
_BIND = """\
cpus=({lists})
rank={rank}
exec taskset -c "${{cpus[${{rank:?the MPI launcher does not tell the ranks of a node}}]}}" "$@"
"""
#: That number: of MPICH and its kin, Open MPI, Cray's PALS; and of srun, which under other launchers is that of the
#: batch script.
_LOCAL_RANK = {
    "mpiexec": "${MPI_LOCALRANKID:-${OMPI_COMM_WORLD_LOCAL_RANK:-$PALS_LOCAL_RANKID}}",
    "srun": "$SLURM_LOCALID",
}


def launch_prefix(
    resources: Resources,
    environ: Mapping[str, str],
    binding: Sequence[Sequence[int]] = (),
    launcher: Launcher = "mpiexec",
    python: str | None = None,
    path_may_change: bool = False,
) -> list[str]:
    """The words before a command that start it on all its ranks; none for a single rank.

    `launch_params` of the job go to the MPI launcher as they are, key then value, all but those that are ours.
    `binding` are the CPUs of each rank of a node, empty: any. `launcher` is looked for on the PATH of `environ`, then
    beside this Python, or else beside `python`, that of the ranks, first. Raises ConfigurationError if it is not there,
    unless the PATH may change before it is started.
    """
    if resources.ranks == 1:
        return []
    program = _find(launcher, environ.get("PATH"), python) or (launcher if path_may_change else None)
    if program is None:
        raise ConfigurationError(
            f"the job wants {resources.ranks} ranks and there is no {launcher} on the PATH here: "
            "load an MPI module in job-template.sh, or pip install mpich"
        )
    given = [word for key, value in resources.launch_params.items() if key != CPU_AFFINITY for word in (key, value)]
    options = _mpiexec(resources) if launcher == "mpiexec" else _srun(resources)
    return [program, *options, *filter(None, given), *_bind(binding, environ, launcher)]


def _mpiexec(resources: Resources) -> list[str]:
    return ["-n", str(resources.ranks)]


def _srun(resources: Resources) -> list[str]:
    size = ["--nodes", resources.num_nodes, "--ntasks", resources.ranks, "--ntasks-per-node", resources.ranks_per_node]
    return [*map(str, size), "--kill-on-bad-exit=1", "--cpu-bind=none"]


def _find(launcher: str, path: str | None, python: str | None) -> str | None:
    # Where MPI was installed with pip it is beside the interpreter, which need not be on the PATH. Python has mpi4py
    # from there as well, and that would not work with the MPI of the PATH.
    ours = os.path.dirname(sys.executable)
    places = [path, ours] if python is None else [os.path.dirname(python), path, ours]
    return next(filter(None, (shutil.which(launcher, path=place) for place in places)), None)


def _bind(binding: Sequence[Sequence[int]], environ: Mapping[str, str], launcher: Launcher) -> list[str]:
    if not binding:
        return []
    if shutil.which("taskset", path=environ.get("PATH")) is None:
        raise ConfigurationError("cpu_affinity=depth of several ranks needs taskset (util-linux) on the PATH here")
    lists = " ".join(",".join(map(str, cpus)) for cpus in binding)
    return ["bash", "-c", _BIND.format(lists=lists, rank=_LOCAL_RANK[launcher]), "bind"]
