"""How the ranks of a job are started on its nodes: by mpiexec, srun, or what a template of the site's settings says."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from balsam_exec.model.errors import ConfigurationError
from balsam_exec.model.jobs import CPU_AFFINITY, Resources
from balsam_exec.platform.cpus import Core

#: Variables for Open MPI 4 and 5, and for the srun by which both MPIs start their daemons. By itself Open MPI binds the
#: ranks of each job to the same first cores, whoever has them already, and refuses more ranks than there are cores, and
#: srun lets a step wait for the CPUs of another; which job runs where has been decided when they are asked.
ENVIRONMENT = {
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "SLURM_OVERLAP": "1",
    "SLURM_CPU_BIND": "none",
}

#: What an mpiexec says of itself that is Open MPI's.
_OPEN_MPI = ("Open MPI", "OpenRTE", "PRRTE", "prterun")
#: The variables of a job that its mpiexec is told to hand on to other nodes: all but those of a node, or its own.
_HANDED_ON = re.compile(
    r"(?!(SLURM|SLURMD|PBS|LSB|LSF|FLUX|OMPI|PMIX|PRTE)_|(HOSTNAME|TMPDIR|PWD|OLDPWD|SHLVL|_)$)[A-Za-z_]\w*"
)
#: Seconds that it has to say it.
_TIMEOUT = 20.0

#: A rank's place, by its number on its node. One way for all MPIs and their versions, which have no common option for
#: it, and some count cores where the kernel counts hardware threads.
_BOUND = 'exec taskset -c "${cpus[${rank:?the MPI launcher does not tell the ranks of a node}]}" "$@"'
#: That number: of MPICH and its kin, Open MPI, Cray's PALS; and of srun, which under other launchers is that of the
#: batch script.
_LOCAL_RANK = "${MPI_LOCALRANKID:-${OMPI_COMM_WORLD_LOCAL_RANK:-$PALS_LOCAL_RANKID}}"
_LOCAL_RANK_OF_SRUN = "$SLURM_LOCALID"
#: The name of a rank's node, as its scheduler has it.
_NODE = "node=${SLURMD_NODENAME:-$(hostname)}"
_NOT_HERE = '*) echo "this node, $node, is none of the job\'s" >&2; exit 1 ;;'

#: Sends SIGTERM to all processes of the step that is named $1, on all nodes. srun itself answers it with their SIGKILL.
#: Without the controller (--ctld) scancel would ask all nodes of the allocation, and fail where one has none of them.
_END_STEP = """\
told=1
while read -r step name; do
    [ "$name" = "$1" ] && scancel --ctld --signal=TERM "$step" && told=0
done < <(squeue --noheader --steps --jobs="$SLURM_JOB_ID" --format="%i %j")
exit $told
"""


@dataclass(frozen=True, slots=True)
class Part:
    """What a job has of one of its nodes."""

    host: str = ""  #: the node's name; empty: this machine, of which no MPI launcher is told
    variables: Mapping[str, str] = field(default_factory=dict)  #: of its ranks there, beside those of all ranks
    binding: tuple[Core, ...] = ()  #: the CPUs of each of its ranks there; empty: any


def is_template(launcher: str) -> bool:
    """Whether this is a Jinja2 template of words, and not the name of a launcher that we know."""
    return "{{" in launcher


def check_launcher(launcher: str) -> str:
    """A launcher that settings may name. Raises ValueError."""
    if launcher in ("mpiexec", "srun"):
        return launcher
    return check_template(launcher)


def check_template(launcher: str) -> str:
    """A template that settings may give. Raises ValueError."""
    if not is_template(launcher):
        raise ValueError(f"{launcher!r} is neither mpiexec nor srun, nor a template such as 'aprun -n {{{{ ranks }}}}'")
    try:
        render(launcher, Resources(), ["host"])
    except ConfigurationError as error:
        raise ValueError(str(error)) from error
    return launcher


def launch_prefix(
    job: Resources,
    environ: Mapping[str, str],
    parts: Sequence[Part] = (Part(),),
    launcher: str = "mpiexec",
    *,
    python: str | None = None,
    path_may_change: bool = False,
    step: str = "",
) -> list[str]:
    """The words before a command that start it on all ranks of a job, on the nodes of its `parts`.

    `launcher` is "mpiexec", "srun" or a template of words. `launch_params` of the job go to it as they are, key then
    value, all but those that are ours. Its program is looked for on the PATH of `environ`, then beside this Python, or
    else beside `python`, that of the ranks, first. `step` is a name for `end_step`. Raises ConfigurationError if the
    program is not there, unless the PATH may change before it is started.
    """
    hosts = [part.host for part in parts if part.host]
    name, *options = render(launcher, job, hosts) if is_template(launcher) else [launcher]
    program = _find(name, environ.get("PATH"), python) or (name if path_may_change else None)
    if program is None:
        raise ConfigurationError(
            f"the job wants {job.ranks} ranks and there is no {name} on the PATH here: "
            "load an MPI module in job-template.sh, or pip install mpich"
        )
    if launcher == "mpiexec":
        options = _mpiexec(job, hosts, program, environ)
    elif launcher == "srun":
        options = _srun(job, hosts, step)
    given = [word for key, value in job.launch_params.items() if key != CPU_AFFINITY for word in (key, value)]
    in_places = _in_their_places(parts, environ, by_srun=os.path.basename(program) == "srun")
    return [program, *options, *filter(None, given), *in_places]


@dataclass(frozen=True, slots=True)
class NodeLauncher:
    """What starts a process on each of several nodes."""

    words: list[str]  #: before the command, which has the environment of this process on all of them
    #: Whether all of them have the standard input of what starts them. srun does that, but SIGTERM it answers with
    #: their SIGKILL; of others all that can be hoped for is that they hand on SIGTERM.
    hands_on_stdin: bool = False


def node_launcher(
    hosts: Sequence[str], environ: Mapping[str, str], launcher: str = "mpiexec", template: str | None = None
) -> NodeLauncher:
    """By `template`, else by srun in an allocation of Slurm, else by `launcher`. Raises ConfigurationError."""
    job = Resources(num_nodes=len(hosts))
    if template is None and "SLURM_JOB_ID" in environ and (srun := _find("srun", environ.get("PATH"))):
        shape = ["--overlap", f"--nodes={len(hosts)}", f"--ntasks={len(hosts)}", "--ntasks-per-node=1"]
        plain = ["--cpu-bind=none", "--mpi=none", "--export=ALL", "--job-name=balsam-launchers"]
        own_end = ["--kill-on-bad-exit=0", "--no-kill", "--wait=0"]
        words = [srun, *shape, f"--nodelist={','.join(hosts)}", *own_end, *plain]
        return NodeLauncher(words, hands_on_stdin=True)
    return NodeLauncher(launch_prefix(job, environ, [Part(host) for host in hosts], template or launcher))


def end_step(step: str) -> list[str]:
    """The command that has the ranks of this step of an allocation of Slurm end, and gives them time to do so. Its exit
    code is 1 if there were none to be told."""
    return ["bash", "-c", _END_STEP, "bash", step]


def render(template: str, job: Resources, hosts: Sequence[str]) -> list[str]:
    """The words of a launcher's template for a job. Raises ConfigurationError."""
    import jinja2  # few sites need it

    names = ("ranks", "ranks_per_node", "num_nodes", "threads_per_rank", "threads_per_core", "gpus_per_rank")
    values = {name: getattr(job, name) for name in (*names, "cores_per_rank")}
    try:
        made = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(template)
        words = shlex.split(made.render(values, hosts=list(hosts) or ["localhost"]))
    except Exception as error:  # it is a program of the site's owner
        raise ConfigurationError(f"the launcher {template!r} cannot be filled in: {error}") from error
    if not words:
        raise ConfigurationError(f"the launcher {template!r} names no program")
    return words


def _mpiexec(job: Resources, hosts: Sequence[str], program: str, environ: Mapping[str, str]) -> list[str]:
    ranks = ["-n", str(job.ranks)]
    if not hosts:
        return ranks
    if not os.path.isabs(program) or not _is_open_mpi(program):
        return [*ranks, "--ppn", str(job.ranks_per_node), "--hosts", ",".join(hosts)]
    slots = ",".join(f"{host}:{job.ranks_per_node}" for host in hosts)
    handed_on = filter(_HANDED_ON.fullmatch, environ)  # other MPIs hand on all
    return [*ranks, "--host", slots, *(word for name in handed_on for word in ("-x", name))]


def _srun(job: Resources, hosts: Sequence[str], step: str) -> list[str]:
    size = ["--nodes", job.num_nodes, "--ntasks", job.ranks, "--ntasks-per-node", job.ranks_per_node]
    where = [f"--nodelist={','.join(hosts)}"] if hosts else []
    named = [f"--job-name={step}"] if step else []
    shared = ["--overlap", "--overcommit", "--cpu-bind=none"]  # who shares what has been decided
    return [*map(str, size), *where, *named, *shared, "--kill-on-bad-exit=1", "--input=none"]


@lru_cache(maxsize=64)
def _is_open_mpi(program: str) -> bool:
    """Whether this mpiexec takes Open MPI's options; if not, those that MPICH's and all its kin (Cray's PALS) take."""
    try:
        done = subprocess.run(
            [program, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigurationError(f"{program} does not say which MPI it is of: {error}") from error
    said = (done.stdout + done.stderr).decode(errors="replace")
    return any(name in said for name in _OPEN_MPI)


def _find(launcher: str, path: str | None, python: str | None = None) -> str | None:
    # Where MPI was installed with pip it is beside the interpreter, which need not be on the PATH. Python has mpi4py
    # from there as well, and that would not work with the MPI of the PATH.
    ours = os.path.dirname(sys.executable)
    places = [path, ours] if python is None else [os.path.dirname(python), path, ours]
    return next(filter(None, (shutil.which(launcher, path=place) for place in places)), None)


def _in_their_places(parts: Sequence[Part], environ: Mapping[str, str], by_srun: bool) -> list[str]:
    """The words that give each rank the variables and the CPUs of its node; none where they have them already."""
    bound = any(part.binding for part in parts)
    if bound and shutil.which("taskset", path=environ.get("PATH")) is None:
        raise ConfigurationError("cpu_affinity=depth of several ranks needs taskset (util-linux) on the PATH here")
    settings = {part.host.partition(".")[0]: _setting(part) for part in parts}
    # srun sets the variables of GPUs to all that the step has.
    told = by_srun and any(part.variables for part in parts)
    if len(set(settings.values())) > 1:
        cases = [f"{host}) {setting} ;;" for host, setting in settings.items()]
        lines = [_NODE, "case ${node%%.*} in", *cases, _NOT_HERE, "esac"]
    elif bound or told:
        lines = list(settings.values())[:1]
    else:
        return []
    if bound:
        lines += [f"rank={_LOCAL_RANK_OF_SRUN if by_srun else _LOCAL_RANK}", _BOUND]
    else:
        lines.append('exec "$@"')
    return ["bash", "-c", "\n".join(lines), "bash"]


def _setting(part: Part) -> str:
    """What a shell is told for one node."""
    variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in part.variables.items())
    cpus = " ".join(",".join(map(str, cpus)) for cpus in part.binding)
    return "; ".join(filter(None, [variables and f"export {variables}", cpus and f"cpus=({cpus})"])) or ":"
