"""Which job fits where: pure arithmetic over the nodes of an allocation.

A node is shared by jobs as far as its cores, its GPUs and its occupancy go: a job of `node_packing_count` n takes
1/n of each of its nodes, so by default (1) it has them for itself. Cores are counted for jobs that ask for more than
one; of the others as many share a node as their `node_packing_count` says, whatever its cores (seed 000). All
quantities are integers, so that whatever is taken and given back a million times adds up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from balsam_exec.model.jobs import Resources
from balsam_exec.platform.nodes import NodeSpec

#: The occupancy of a full node, and the share of a whole GPU.
WHOLE = 10**12


@dataclass(frozen=True, slots=True)
class Need:
    """What a job takes of each of its nodes."""

    nodes: int
    cores: int  #: 0: they are not counted
    gpus: int  #: in units of WHOLE
    occupancy: int

    @classmethod
    def of(cls, job: Resources) -> Need:
        gpus = round(job.gpus_per_node * WHOLE)
        cores = job.cores_per_node if job.cores_per_node > 1 else 0
        return cls(job.num_nodes, cores, gpus, WHOLE // job.node_packing_count)


#: A job of which as many fit on a node as it has cores.
SERIAL = Need(nodes=1, cores=1, gpus=0, occupancy=0)


@dataclass(frozen=True, slots=True)
class Node:
    """A node and what is free of it."""

    spec: NodeSpec
    cores: int
    gpus: tuple[int, ...]  #: of each GPU, in units of WHOLE
    occupancy: int = WHOLE
    jobs: int = 0

    @classmethod
    def empty(cls, spec: NodeSpec) -> Node:
        return cls(spec, spec.cores, (WHOLE,) * len(spec.gpus))


class Share(NamedTuple):
    """What one job has of one node."""

    node: int
    cores: int
    gpus: tuple[tuple[int, int], ...]  #: (index of the GPU, units)
    occupancy: int


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a job runs: its share of each of its nodes."""

    shares: tuple[Share, ...]


def obstacle(specs: Sequence[NodeSpec], need: Need) -> str | None:
    """Why a job can never run on these nodes, even when they are empty; None if it can."""
    if need.nodes > len(specs):
        return f"it wants {need.nodes} nodes and the allocation has {len(specs)}"
    if need.gpus and sum(need.gpus <= len(spec.gpus) * WHOLE for spec in specs) < need.nodes:
        most = max(len(spec.gpus) for spec in specs)
        return f"it wants {need.gpus / WHOLE:g} GPUs on a node and the nodes here have {most}"
    return None


def place(nodes: Sequence[Node], need: Need) -> Placement | None:
    """A place for a job among what is free now."""
    shares = []
    for index, node in enumerate(nodes):
        if share := _share(index, node, need):
            shares.append(share)
            if len(shares) == need.nodes:
                return Placement(tuple(shares))
    return None


def room(nodes: Sequence[Node], need: Need) -> int:
    """How many such jobs could start now."""
    return sum(_copies(node, need) for node in nodes) // need.nodes


def occupy(nodes: tuple[Node, ...], placement: Placement) -> tuple[Node, ...]:
    """The nodes once the job is there."""
    return _change(nodes, placement, -1)


def vacate(nodes: tuple[Node, ...], placement: Placement) -> tuple[Node, ...]:
    """The nodes once the job is gone."""
    return _change(nodes, placement, +1)


def _share(index: int, node: Node, need: Need) -> Share | None:
    if need.cores > node.spec.cores:  # it runs all the same, but alone
        if node.jobs:
            return None
        need = replace(need, cores=node.spec.cores, occupancy=WHOLE)
    if need.cores > node.cores or need.occupancy > node.occupancy:
        return None
    gpus = _choose_gpus(node.gpus, need.gpus)
    return None if gpus is None else Share(index, need.cores, gpus, need.occupancy)


def _copies(node: Node, need: Need) -> int:
    """How many such jobs could start on a node; one at least if any can, since they may fit in other ways."""
    if _share(0, node, need) is None:
        return 0
    limits = [node.cores // need.cores] if need.cores else []
    limits += [node.occupancy // need.occupancy] if need.occupancy else []
    if need.gpus:
        each = need.gpus if need.gpus < WHOLE else -(-need.gpus // WHOLE) * WHOLE
        limits.append(sum(node.gpus) // each)
    return max(1, min(limits, default=1))


def _choose_gpus(free: tuple[int, ...], wanted: int) -> tuple[tuple[int, int], ...] | None:
    """Whole GPUs for a whole or more; a part of one, the fullest that will do, for less."""
    if not wanted:
        return ()
    if wanted < WHOLE:
        fitting = [(units, index) for index, units in enumerate(free) if units >= wanted]
        return ((min(fitting)[1], wanted),) if fitting else None
    count = -(-wanted // WHOLE)
    whole = [index for index, units in enumerate(free) if units == WHOLE][:count]
    return tuple((index, WHOLE) for index in whole) if len(whole) == count else None


def _change(nodes: tuple[Node, ...], placement: Placement, sign: int) -> tuple[Node, ...]:
    changed = list(nodes)
    for share in placement.shares:
        node = changed[share.node]
        gpus = node.gpus
        if share.gpus:
            taken = dict(share.gpus)
            gpus = tuple(units + sign * taken.get(index, 0) for index, units in enumerate(gpus))
        changed[share.node] = replace(
            node,
            cores=node.cores + sign * share.cores,
            gpus=gpus,
            occupancy=node.occupancy + sign * share.occupancy,
            jobs=node.jobs - sign,
        )
    return tuple(changed)
