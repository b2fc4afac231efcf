"""Which job fits where: pure arithmetic over the nodes of an allocation.

A node is shared by jobs as far as its cores, its GPUs and its occupancy go: a job of `node_packing_count` n takes
1/n of each of its nodes, so by default (1) it has them for itself. Jobs that ask for more than one core, or to be bound
to it, have cores of their own; of the others as many share a node as their `node_packing_count` says, whatever its
cores (seed 000). All quantities are integers, so that whatever is taken and given back a million times adds up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from balsam_exec.model.jobs import Affinity, Resources
from balsam_exec.platform.cpus import Core
from balsam_exec.platform.nodes import NodeSpec

#: The occupancy of a full node, and the share of a whole GPU.
WHOLE = 10**12


@dataclass(frozen=True, slots=True)
class Need:
    """What a job takes of each of its nodes."""

    nodes: int
    cores: int  #: 0: any, together with others
    occupancy: int
    ranks: int = 1
    gpus: int = 0  #: whole ones of each rank
    gpu_part: int = 0  #: of one more GPU, of each rank, in units of WHOLE

    @classmethod
    def of(cls, job: Resources, affinity: Affinity = "none") -> Need:
        """`affinity` is that of jobs that do not say."""
        cores = job.cores_per_node
        # Rounded down: so many parts as make up a GPU fit into it.
        gpus, part = divmod(int(job.gpus_per_rank * WHOLE), WHOLE)
        own = cores > 1 or is_bound(job, affinity)
        return cls(job.num_nodes, cores if own else 0, WHOLE // job.node_packing_count, job.ranks_per_node, gpus, part)

    @property
    def gpu_units(self) -> int:
        return self.ranks * (self.gpus * WHOLE + self.gpu_part)


#: The least that any job takes of a node: more of them may not share one.
_LEAST = WHOLE // 1_000_000

#: A job of which as many fit on a node as it has cores.
SERIAL = Need(nodes=1, cores=1, occupancy=0)


class Node(NamedTuple):
    """A node and what is free of it."""

    spec: NodeSpec
    cores: int  #: as a set of bits
    gpus: tuple[int, ...]  #: of each GPU, in units of WHOLE
    occupancy: int = WHOLE

    @classmethod
    def empty(cls, spec: NodeSpec) -> Node:
        return cls(spec, (1 << spec.cores) - 1, (WHOLE,) * len(spec.gpus))


class Share(NamedTuple):
    """What one job has of one node."""

    node: int
    cores: int  #: as a set of bits
    gpus: tuple[tuple[int, int], ...]  #: (index of the GPU, units)
    occupancy: int


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a job runs: its share of each of its nodes."""

    shares: tuple[Share, ...]


def is_bound(job: Resources, affinity: Affinity) -> bool:
    """Whether the processes of a job stay on cores of their own; `affinity` is that of jobs that do not say."""
    return (job.cpu_affinity or affinity) == "depth"


def obstacle(specs: Sequence[NodeSpec], need: Need) -> str | None:
    """Why a job can never run on these nodes, even when they are empty; None if it can."""
    if need.nodes > len(specs):
        return f"it wants {need.nodes} nodes and the allocation has {len(specs)}"
    empty = map(Node.empty, specs)
    if need.gpu_units and sum(_choose_gpus(node.gpus, need) is not None for node in empty) < need.nodes:
        most = max(len(spec.gpus) for spec in specs)
        each = f" for {need.ranks} ranks, {need.gpu_units / need.ranks / WHOLE:g} each" if need.ranks > 1 else ""
        return f"it wants {need.gpu_units / WHOLE:g} GPUs on a node{each}, and the nodes here have {most}"
    return None


def place(nodes: Sequence[Node], need: Need) -> Placement | None:
    """A place for a job among what is free now; None only if there is none."""
    shares = []
    for index, node in enumerate(nodes):
        if share := _share(index, node, need):
            shares.append(share)
            if len(shares) == need.nodes:
                return Placement(tuple(shares))
    return None


def room(nodes: Sequence[Node], need: Need) -> int:
    """How many such jobs could start now."""
    copies = [_copies(node, need) for node in nodes]
    count = sum(copies) // need.nodes
    while need.nodes > 1 and (fewer := sum(min(each, count) for each in copies) // need.nodes) < count:
        count = fewer  # each of them has a node but once
    return count


class Vacancy(NamedTuple):
    """What is free, in a few numbers: a job that asks for more than these surely has no place now."""

    nodes: int = 0  #: on so many of them; 0: nothing is free
    packing: int = 1  #: the least node_packing_count
    cores: int | None = 1  #: on a node, at least one, which may be shared; None: even more than it has
    gpus: int = 0  #: on a node, in units of WHOLE
    aggregate: float = 0.0  #: of all nodes together, so many

    def or_for(self, need: Need) -> Vacancy:
        """With what such a job leaves when it ends."""
        return self._replace(
            nodes=max(self.nodes, need.nodes),
            packing=min(self.packing, WHOLE // need.occupancy) if self.nodes else WHOLE // need.occupancy,
            cores=None if self.cores is None else max(self.cores, need.cores),
            gpus=max(self.gpus, need.gpu_units),
        )


def is_any_free(nodes: Sequence[Node]) -> bool:
    return any(node.occupancy >= _LEAST for node in nodes)


def vacancies(nodes: Sequence[Node]) -> list[Vacancy]:
    """What is free now: to a job of few nodes, on the emptiest; and to one of many, on each of those on which anything
    is, if that is something else."""
    free = [node.occupancy for node in nodes if node.occupancy >= _LEAST]
    if not free:
        return [Vacancy()]
    few, many = _vacancy(nodes, max(free), max), _vacancy(nodes, min(free), min)
    return [few] if few == many else [few, many]


def _vacancy(nodes: Sequence[Node], occupancy: int, of_all: Callable[[Iterable[int]], int]) -> Vacancy:
    packing = WHOLE // (occupancy + 1) + 1
    alike = [node for node in nodes if node.occupancy >= WHOLE // packing]
    # Of truths `max` is any, and `min` all.
    empty = (node.occupancy == WHOLE and node.cores.bit_count() == node.spec.cores for node in alike)
    return Vacancy(
        nodes=len(alike),
        packing=packing,
        cores=None if of_all(empty) else max(1, of_all(node.cores.bit_count() for node in alike)),
        gpus=of_all(sum(node.gpus) for node in alike),
        aggregate=sum(node.occupancy for node in nodes) / WHOLE,
    )


def occupy(nodes: tuple[Node, ...], placement: Placement) -> tuple[Node, ...]:
    """The nodes once the job is there."""
    return _change(nodes, placement, -1)


def vacate(nodes: tuple[Node, ...], placement: Placement) -> tuple[Node, ...]:
    """The nodes once the job is gone."""
    return _change(nodes, placement, +1)


def cpus_of_ranks(job: Resources, share: Share, spec: NodeSpec) -> tuple[Core, ...]:
    """For each rank of a job on a node the CPUs of its own cores, `threads_per_core` of each.

    Where the node has too few cores for the job, which then has it for itself, all ranks share them. `spec` knows the
    node's CPUs.
    """
    cores = [spec.cpus[index][: job.threads_per_core] for index in _bits(share.cores)]
    depth = job.cores_per_rank
    if len(cores) < depth * job.ranks_per_node:
        depth, groups = len(cores), [cores] * job.ranks_per_node
    else:
        groups = [cores[rank * depth :][:depth] for rank in range(job.ranks_per_node)]
    return tuple(tuple(cpu for core in group for cpu in core) for group in groups)


def _share(index: int, node: Node, need: Need) -> Share | None:
    cores, occupancy = need.cores, need.occupancy
    if cores > node.spec.cores:  # it runs all the same, but alone
        cores, occupancy = node.spec.cores, WHOLE
    if occupancy > node.occupancy or cores > node.cores.bit_count():
        return None
    gpus = _choose_gpus(node.gpus, need) if need.gpus or need.gpu_part else ()
    return None if gpus is None else Share(index, _lowest(node.cores, cores), gpus, occupancy)


def _copies(node: Node, need: Need) -> int:
    """How many such jobs could start on a node; one at least if any can, since they may fit in other ways."""
    if _share(0, node, need) is None:
        return 0
    limits = [node.cores.bit_count() // need.cores] if need.cores else []
    limits += [node.occupancy // need.occupancy] if need.occupancy else []
    if need.gpus:
        limits.append(node.gpus.count(WHOLE) // (need.ranks * need.gpus))
        limits.append(sum(node.gpus) // need.gpu_units)
    elif need.gpu_part:
        limits.append(sum(units // need.gpu_part for units in node.gpus) // need.ranks)
    return max(1, min(limits, default=1))


def _choose_gpus(free: tuple[int, ...], need: Need) -> tuple[tuple[int, int], ...] | None:
    """GPUs for all ranks: parts from those that others share already, the fullest first, before a whole one is broken.
    That leaves the most whole ones, so if these do not suffice, nothing does."""
    taken: dict[int, int] = {}
    whole = [index for index, units in enumerate(free) if units == WHOLE]
    parts = need.ranks if need.gpu_part else 0
    for units, index in sorted((units, index) for index, units in enumerate(free) if units < WHOLE):
        if count := min(parts, units // need.gpu_part) if parts else 0:
            taken[index] = count * need.gpu_part
            parts -= count
    each = WHOLE // need.gpu_part if parts else 1
    count = need.ranks * need.gpus
    if count - (-parts // each) > len(whole):
        return None
    taken |= dict.fromkeys(whole[:count], WHOLE)
    for index in whole[count:]:
        if not parts:
            break
        taken[index] = min(parts, each) * need.gpu_part
        parts -= min(parts, each)
    return tuple(sorted(taken.items()))


def _bits(mask: int) -> Iterator[int]:
    """The numbers in a set of bits, from the lowest."""
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


def _lowest(mask: int, count: int) -> int:
    """So many of its bits, from the lowest."""
    rest = mask
    for _ in range(count):
        rest &= rest - 1
    return mask ^ rest


def _change(nodes: tuple[Node, ...], placement: Placement, sign: int) -> tuple[Node, ...]:
    changed = list(nodes)
    for share in placement.shares:
        spec, cores, gpus, occupancy = changed[share.node]
        if share.gpus:
            taken = dict(share.gpus)
            gpus = tuple(units + sign * taken.get(index, 0) for index, units in enumerate(gpus))
        # The bits of a share are free before and taken after, or the other way round.
        changed[share.node] = Node(spec, cores ^ share.cores, gpus, occupancy + sign * share.occupancy)
    return tuple(changed)
