"""From a Parsl resource specification to what a job asks for. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from parsl.executors.errors import InvalidResourceSpecification
from pydantic import ValidationError

from balsam_exec.client.lookups import explain
from balsam_exec.model.base import Tags
from balsam_exec.model.jobs import Resources

#: What a specification may ask for.
KEYS = (
    *("num_nodes", "ranks_per_node", "num_ranks", "threads_per_rank", "threads_per_core", "cores"),
    *("gpus_per_rank", "gpus", "wall_time_min", "running_time_min", "node_packing_count", "launch_params", "tags"),
)
#: Those that are taken as they are.
_DIRECT = ("threads_per_core", "node_packing_count", "launch_params", "tags")


class Request(Resources):
    """What a task asks for."""

    tags: Tags = {}


def translate(specification: Mapping[str, Any], workers_per_node: int) -> Request:
    """A resource specification: the fields of `Resources`, `tags`, and the words that other executors have for them.

    - `num_ranks`: `num_nodes` times `ranks_per_node`; alone, all on one node (MPIExecutor).
    - `cores`, `gpus`: on each node (Work Queue).
    - `running_time_min`: how many seconds the task needs at least (Work Queue); `wall_time_min` is in minutes.
    - `node_packing_count`: by default as many as share the `workers_per_node` by their cores.

    Raises InvalidResourceSpecification, for contradictions too.
    """
    if unknown := set(specification) - set(KEYS):
        raise InvalidResourceSpecification(unknown, f"A task may ask for: {', '.join(KEYS)}.")
    fields = {key: value for key, value in specification.items() if key in _DIRECT}
    fields |= _ranks(specification)
    fields |= _threads(specification, fields["ranks_per_node"])
    fields |= _gpus(specification, fields["ranks_per_node"])
    fields |= _wall_time(specification)
    try:
        request = Request(**fields)
    except ValidationError as error:
        wrong = {str(item["loc"][0]) for item in error.errors() if item["loc"]}
        raise InvalidResourceSpecification(wrong, explain(error)) from error
    if "node_packing_count" in fields:
        return request
    return request.model_copy(update={"node_packing_count": max(1, workers_per_node // request.cores_per_node)})


def _ranks(specification: Mapping[str, Any]) -> dict[str, Any]:
    nodes = _whole(specification, "num_nodes")
    per_node = _whole(specification, "ranks_per_node")
    ranks = _whole(specification, "num_ranks")
    if ranks is None:
        return {"num_nodes": nodes or 1, "ranks_per_node": per_node or 1}
    if nodes is None:
        nodes = 1 if per_node is None else _divide(ranks, per_node, "num_ranks", "ranks_per_node")
    shared = _divide(ranks, nodes, "num_ranks", "num_nodes")
    if per_node not in (None, shared):
        raise _contradiction("num_ranks", "num_nodes", "ranks_per_node")
    return {"num_nodes": nodes, "ranks_per_node": shared}


def _threads(specification: Mapping[str, Any], ranks_per_node: int) -> dict[str, Any]:
    threads = _whole(specification, "threads_per_rank")
    cores = _whole(specification, "cores")
    if cores is None:
        return {"threads_per_rank": threads or 1}
    share = _divide(cores, ranks_per_node, "cores", "ranks_per_node")
    threads_per_core = _whole(specification, "threads_per_core") or 1
    if threads is None:
        return {"threads_per_rank": share * threads_per_core}
    if -(-threads // threads_per_core) != share:
        raise _contradiction("cores", "ranks_per_node", "threads_per_rank")
    return {"threads_per_rank": threads}


def _gpus(specification: Mapping[str, Any], ranks_per_node: int) -> dict[str, Any]:
    each, gpus = specification.get("gpus_per_rank"), specification.get("gpus")
    if gpus is None:
        return {} if each is None else {"gpus_per_rank": each}
    if isinstance(gpus, bool) or not isinstance(gpus, int | float):
        raise InvalidResourceSpecification({"gpus"}, f"gpus is a number, not {gpus!r}.")
    share = gpus / ranks_per_node
    if each not in (None, share):
        raise _contradiction("gpus", "gpus_per_rank", "ranks_per_node")
    return {"gpus_per_rank": share}


def _wall_time(specification: Mapping[str, Any]) -> dict[str, Any]:
    minutes, seconds = specification.get("wall_time_min"), _whole(specification, "running_time_min", least=0)
    if seconds is None:
        return {} if minutes is None else {"wall_time_min": minutes}
    if minutes not in (None, -(-seconds // 60)):
        raise _contradiction("wall_time_min", "running_time_min")
    return {"wall_time_min": -(-seconds // 60)}


def _whole(specification: Mapping[str, Any], key: str, least: int = 1) -> int | None:
    value = specification.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidResourceSpecification({key}, f"{key} is a whole number of at least {least}, not {value!r}.")
    return value


def _divide(total: int, parts: int, *keys: str) -> int:
    if total % parts:
        raise _contradiction(*keys)
    return total // parts


def _contradiction(*keys: str) -> InvalidResourceSpecification:
    return InvalidResourceSpecification(set(keys), "They contradict each other.")
