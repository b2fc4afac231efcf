"""From the arguments of `submit` to what a job asks for: arithmetic and text, no I/O."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from libensemble.executors.executor import ExecutorException

from balsam_exec.apps.definition import JobInput, command_input, python_input
from balsam_exec.apps.templates import render
from balsam_exec.executors.libensemble.apps import RegisteredApp
from balsam_exec.model.apps import AppRecord, ParameterSpec
from balsam_exec.model.jobs import CPU_AFFINITY

#: Options of MPI launchers that say what libEnsemble has arguments for.
_OPTIONS = {
    "-n": "num_procs",
    "-np": "num_procs",
    "--np": "num_procs",
    "-ppn": "procs_per_node",
    "--ppn": "procs_per_node",
}


@dataclass(frozen=True, slots=True)
class Shape:
    """The ranks of a task and their GPUs."""

    num_nodes: int
    ranks_per_node: int
    gpus_per_rank: float = 0.0

    @property
    def ranks(self) -> int:
        return self.num_nodes * self.ranks_per_node


def shape(
    num_procs: Any = None,
    num_nodes: Any = None,
    procs_per_node: Any = None,
    num_gpus: Any = None,
    gpus_per_rank: float = 0,
    *,
    match_procs_to_gpus: bool = False,
) -> Shape:
    """What these numbers mean together, as libEnsemble reads them: what is not given follows from the rest.

    Raises ExecutorException where they contradict each other.
    """
    procs, nodes, per_node = (
        _count(name, value)
        for name, value in (("num_procs", num_procs), ("num_nodes", num_nodes), ("procs_per_node", procs_per_node))
    )
    gpus = None if num_gpus is None else _count("num_gpus", num_gpus) or 0
    if match_procs_to_gpus and gpus and not (procs or per_node):
        procs = gpus
    if procs is None:
        nodes, per_node = nodes or 1, per_node or 1
    elif nodes is None:
        per_node = per_node or procs
        nodes = _divided(procs, per_node, f"num_procs={procs} are not a multiple of procs_per_node={per_node}")
    elif per_node is None:
        per_node = _divided(procs, nodes, f"num_procs={procs} cannot be spread evenly over num_nodes={nodes}")
    elif procs != nodes * per_node:
        raise ExecutorException(f"num_procs={procs} is not num_nodes={nodes} times procs_per_node={per_node}")
    if gpus_per_rank < 0:
        raise ExecutorException(f"gpus_per_rank={gpus_per_rank} is negative")
    if gpus is not None:
        if gpus_per_rank and gpus_per_rank * nodes * per_node != gpus:
            raise ExecutorException(
                f"num_gpus={gpus} is not gpus_per_rank={gpus_per_rank} for {nodes * per_node} ranks"
            )
        gpus_per_rank = gpus / (nodes * per_node)
    return Shape(nodes, per_node, float(gpus_per_rank))


def _count(name: str, value: Any) -> int | None:
    """None for what is not given: libEnsemble's callers pass 0 and "", too."""
    if value is None or value == "":
        return None
    try:
        number = int(value)
    except (TypeError, ValueError):
        raise ExecutorException(f"{name}={value!r} is not a number") from None
    if number < 0 or number != float(value):
        raise ExecutorException(f"{name}={value!r} is not a number of anything")
    return number or None


def _divided(total: int, by: int, problem: str) -> int:
    if total % by:
        raise ExecutorException(problem)
    return total // by


def launcher_options(extra_args: Mapping[str, Any] | str | None) -> tuple[dict[str, str], dict[str, int]]:
    """(`launch_params` of the job, the numbers of ranks among them) from `extra_args`: a mapping as of Balsam, or a
    line of options as of MPIExecutor."""
    if not extra_args:
        return {}, {}
    if not isinstance(extra_args, str):
        return {str(key): str(value) for key, value in extra_args.items()}, {}
    words = extra_args.split()
    params: dict[str, str] = {}
    counts: dict[str, int] = {}
    while words:
        option = words.pop(0)
        value = words.pop(0) if words and not words[0].startswith("-") else ""
        if option in _OPTIONS:
            counts[_OPTIONS[option]] = _count(option, value) or 1
        elif option in params:
            raise ExecutorException(f"extra_args has {option} twice; a Balsam job can pass it once")
        else:
            params[option] = value
    return params, counts


def words_of(app_args: Any) -> list[str]:
    """The arguments of an executable: a line is split at blanks, as libEnsemble does it."""
    if app_args is None:
        return []
    if isinstance(app_args, str):
        return app_args.split()
    if isinstance(app_args, Mapping) or not isinstance(app_args, Sequence):
        raise ExecutorException(f"app_args of an executable are a line or a list of words, not {app_args!r}")
    return [os.fspath(word) if isinstance(word, os.PathLike) else str(word) for word in app_args]


def parameters_of(name: str, declared: Mapping[str, ParameterSpec], app_args: Any) -> dict[str, Any]:
    """The parameters of an ApplicationDefinition. A line is for the one that takes a single parameter."""
    if app_args is None:
        return {}
    if isinstance(app_args, Mapping):
        return dict(app_args)
    if len(declared) == 1:
        [only] = declared
        return {only: words_of(app_args)}
    takes = ", ".join(sorted(declared)) or "no parameters"
    raise ExecutorException(f"app_args of {name} are a dictionary (it takes: {takes}), not {app_args!r}")


def inputs_of(app: RegisteredApp, app_args: Any) -> JobInput:
    """What a job of the ApplicationDefinition is run with. Raises ParameterError, PayloadError, TooLarge."""
    record = app.record
    given = parameters_of(app.name, record.parameters, app_args)
    if record.command_template is None:
        return python_input(record.name, getattr(app.pyobj, "run", None), given)
    return command_input(record.name, record.parameters, given)


def command_line(record: AppRecord, parameters: Mapping[str, Any]) -> str:
    """The command of one rank. Raises ParameterError for values that cannot stand in it."""
    if record.command_template is None:
        return f"{record.name}.run()"
    return render(record.command_template, record.parameters, parameters, record.name).strip()


def mpi_prefix(size: Shape, options: Mapping[str, str]) -> list[str]:
    """What starts the ranks, as people write it; the site has its own way."""
    if size.ranks == 1:
        return []
    given = [word for key, value in options.items() if key != CPU_AFFINITY for word in (key, value) if word]
    return ["mpiexec", "-n", str(size.ranks), *given]


def transfers_of(record: AppRecord, transfers: Mapping[str, Any]) -> dict[str, str]:
    """Slot -> "location:path", also from {"location": ..., "path": ...} as in Balsam."""
    unknown = sorted(set(transfers) - set(record.transfers))
    missing = sorted(slot for slot, spec in record.transfers.items() if spec.required and slot not in transfers)
    if unknown or missing:
        problems = [f"unknown: {', '.join(unknown)}"] * bool(unknown) + [f"missing: {', '.join(missing)}"] * bool(
            missing
        )
        slots = ", ".join(record.transfers) or "none"
        raise ExecutorException(f"transfers of {record.name}: {'; '.join(problems)} (it has: {slots})")
    found = {}
    for slot, where in transfers.items():
        if isinstance(where, Mapping):
            if set(where) != {"location", "path"}:
                raise ExecutorException(f"transfers[{slot!r}] has location and path, not {', '.join(map(str, where))}")
            where = f"{where['location']}:{where['path']}"
        found[str(slot)] = str(where)
    return found


def output_name(name: str, directory: str) -> str:
    """An output file as a job has it: relative to its directory."""
    path = os.path.relpath(name, directory) if os.path.isabs(name) else os.path.normpath(name)
    if path.split(os.sep)[0] == "..":
        raise ExecutorException(f"the output file {name} is not in the directory of its task, {directory}")
    return path
