"""Placement: jobs share nodes, and never more than there is."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from balsam_exec.launcher.placement import (
    WHOLE,
    Need,
    Node,
    Placement,
    Share,
    Vacancy,
    cpus_of_ranks,
    obstacle,
    occupy,
    place,
    room,
    vacancies,
    vacate,
)
from balsam_exec.model.jobs import JobPatch, JobSpec, Resources
from balsam_exec.platform.nodes import NodeSpec


def nodes(*shapes: tuple[int, int]) -> tuple[Node, ...]:
    specs = [NodeSpec(f"n{i}", cores, tuple(map(str, range(gpus)))) for i, (cores, gpus) in enumerate(shapes)]
    return tuple(map(Node.empty, specs))


def fill(free: tuple[Node, ...], **resources: float) -> list[Placement]:
    """As many such jobs as fit."""
    need = Need.of(Resources.model_validate(resources))
    found = []
    while placement := place(free, need):
        found.append(placement)
        free = occupy(free, placement)
    assert room(free, need) == 0
    return found


@pytest.mark.parametrize(
    ("resources", "count"),
    [
        ({}, 1),  # a node for itself
        ({"node_packing_count": 4}, 4),
        ({"node_packing_count": 3}, 3),
        ({"node_packing_count": 64}, 64),  # whatever the cores
        ({"node_packing_count": 64, "threads_per_rank": 3}, 2),
        ({"node_packing_count": 64, "threads_per_rank": 4, "threads_per_core": 2}, 4),
        ({"node_packing_count": 64, "ranks_per_node": 8}, 1),
        ({"node_packing_count": 64, "ranks_per_node": 100}, 1),  # more than there is: alone
        ({"node_packing_count": 64, "gpus_per_rank": 1}, 2),
        ({"node_packing_count": 64, "gpus_per_rank": 0.5}, 4),
        ({"node_packing_count": 64, "gpus_per_rank": 1 / 3}, 6),
        ({"node_packing_count": 64, "gpus_per_rank": 1 / 6}, 12),
        ({"node_packing_count": 64, "gpus_per_rank": 1.5}, 1),
        ({"node_packing_count": 64, "gpus_per_rank": 3}, 0),
        ({"num_nodes": 2}, 0),
    ],
)
def test_how_many_fit_on_a_node_of_8_cores_and_2_gpus(resources: dict[str, float], count: int) -> None:
    assert len(fill(nodes((8, 2)), **resources)) == count
    assert room(nodes((8, 2)), Need.of(Resources.model_validate(resources))) == count
    impossible = obstacle([node.spec for node in nodes((8, 2))], Need.of(Resources.model_validate(resources)))
    assert (impossible is None) == (count > 0)


def test_a_job_too_large_for_a_node_waits_until_it_is_empty() -> None:
    free = nodes((4, 0))
    small = place(free, Need.of(Resources(ranks_per_node=2, node_packing_count=8)))
    large = Need.of(Resources(ranks_per_node=16, node_packing_count=8))
    assert small is not None
    assert place(occupy(free, small), large) is None
    alone = place(free, large)
    assert alone is not None
    assert place(occupy(free, alone), Need.of(Resources(node_packing_count=8))) is None


def test_jobs_of_several_nodes() -> None:
    found = fill(nodes((4, 0), (4, 0), (4, 0), (4, 0), (4, 0)), num_nodes=2)
    assert [[share.node for share in p.shares] for p in found] == [[0, 1], [2, 3]]


def test_parts_of_gpus_are_taken_from_the_fullest() -> None:
    found = fill(nodes((8, 2)), gpus_per_rank=0.5, node_packing_count=8)
    assert [share.gpus[0][0] for p in found for share in p.shares] == [0, 0, 1, 1]


def test_the_cores_of_a_job_are_its_own() -> None:
    found = fill(nodes((8, 0)), threads_per_rank=3, node_packing_count=9)
    assert [share.cores for p in found for share in p.shares] == [0b000111, 0b111000]


def test_bound_jobs_of_one_core_have_it_for_themselves() -> None:
    job = Resources(node_packing_count=64)
    bound = Resources(node_packing_count=64, launch_params={"cpu_affinity": "depth"})
    free = nodes((8, 0))
    assert room(free, Need.of(job)) == 64
    assert room(free, Need.of(bound)) == room(free, Need.of(job, "depth")) == 8
    unbound = Resources(launch_params={"cpu_affinity": "none"})
    assert Need.of(unbound, "depth").cores == 0


@pytest.mark.parametrize("make", [partial(JobSpec, app_id=1, workdir="w"), JobPatch])
def test_an_affinity_that_does_not_exist_is_refused(make: Callable[..., object]) -> None:
    with pytest.raises(ValidationError, match="cpu_affinity is one of none, depth, not 'wide'"):
        make(launch_params={"cpu_affinity": "wide"})
    make(launch_params={"cpu_affinity": "depth", "-l": ""})


@pytest.mark.parametrize(
    ("ranks", "each", "free", "taken"),
    [
        (3, 0.5, (1, 1), {0: 1, 1: 0.5}),
        (3, 0.5, (0.75, 1), {0: 0.5, 1: 1}),
        (3, 0.5, (0.75, 0.75, 0.75), {0: 0.5, 1: 0.5, 2: 0.5}),
        (3, 0.5, (0.75, 0.75, 0.25), None),
        (3, 0.25, (0.75,), {0: 0.75}),
        (2, 0.75, (1, 0.5), None),
        (1, 1.5, (0.5, 1), {0: 0.5, 1: 1}),
        (2, 1.5, (1, 1, 1), {0: 1, 1: 1, 2: 1}),
        (2, 2, (1, 1, 1, 1, 1), {0: 1, 1: 1, 2: 1, 3: 1}),
        (1, 0.25, (1, 0.25, 0.5), {1: 0.25}),
    ],
)
def test_gpus_of_ranks(ranks: int, each: float, free: tuple[float, ...], taken: dict[int, float] | None) -> None:
    [empty] = nodes((8, len(free)))
    node = empty._replace(gpus=tuple(int(units * WHOLE) for units in free))
    job = Resources(ranks_per_node=ranks, gpus_per_rank=each)
    placement = place([node], Need.of(job))
    assert (placement and {i: units / WHOLE for i, units in placement.shares[0].gpus}) == taken


def test_why_gpus_do_not_suffice() -> None:
    specs = [node.spec for node in nodes((8, 2))]
    why = obstacle(specs, Need.of(Resources(ranks_per_node=3, gpus_per_rank=0.6)))
    assert why == "it wants 1.8 GPUs on a node for 3 ranks, 0.6 each, and the nodes here have 2"


# --- the CPUs of ranks


@pytest.mark.parametrize(
    ("resources", "cpus"),
    [
        ({}, [(0,)]),
        ({"threads_per_core": 2, "threads_per_rank": 2}, [(0, 4)]),
        ({"ranks_per_node": 2}, [(0,), (1,)]),
        ({"ranks_per_node": 2, "threads_per_rank": 2}, [(0, 1), (2, 3)]),
        ({"ranks_per_node": 2, "threads_per_rank": 3, "threads_per_core": 2}, [(0, 4, 1, 5), (2, 6, 3, 7)]),
        ({"ranks_per_node": 3, "threads_per_rank": 2}, [(0, 1, 2, 3)] * 3),  # too many: together on all
    ],
)
def test_ranks_are_bound_to_cores(resources: dict[str, int], cpus: list[tuple[int, ...]]) -> None:
    spec = NodeSpec("n", 4, cpus=((0, 4), (1, 5), (2, 6), (3, 7)))
    job = Resources.model_validate(resources)
    placement = place([Node.empty(spec)], Need.of(job, "depth"))
    assert placement is not None
    assert list(cpus_of_ranks(job, placement.shares[0], spec)) == cpus


# --- whatever comes and goes

PARTS = [0, 0, 0.1, 1 / 3, 0.4, 0.5, 0.7, 1, 1.5, 2]
RESOURCES = st.builds(
    Resources,
    num_nodes=st.integers(1, 3),
    ranks_per_node=st.integers(1, 4),
    threads_per_rank=st.integers(1, 4),
    threads_per_core=st.integers(1, 2),
    gpus_per_rank=st.sampled_from(PARTS),
    node_packing_count=st.integers(1, 9),
    launch_params=st.sampled_from([{}, {"cpu_affinity": "depth"}]),
)
SHAPES = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 3)), min_size=1, max_size=4)


def fits(node: Node, need: Need) -> bool:
    """Whether there is any way to have the job on this node: all are tried."""
    if need.cores > node.spec.cores:
        return node.occupancy == WHOLE and gpus_fit(tuple(sorted(node.gpus)), need, need.ranks)
    enough = need.occupancy <= node.occupancy and need.cores <= node.cores.bit_count()
    return enough and gpus_fit(tuple(sorted(node.gpus)), need, need.ranks)


@cache
def gpus_fit(free: tuple[int, ...], need: Need, ranks: int) -> bool:
    if ranks == 0:
        return True
    whole = [i for i, units in enumerate(free) if units == WHOLE]
    for chosen in combinations(whole, need.gpus):
        left = tuple(sorted(0 if i in chosen else units for i, units in enumerate(free)))
        if not need.gpu_part:
            return gpus_fit(left, need, ranks - 1)  # one whole GPU is like another
        for i, units in enumerate(left):
            if units >= need.gpu_part:
                rest = (*left[:i], units - need.gpu_part, *left[i + 1 :])
                if gpus_fit(tuple(sorted(rest)), need, ranks - 1):
                    return True
    return False


def check_share(share: Share, need: Need, node: Node) -> None:
    """That it is what the job asked for."""
    assert share.cores.bit_count() == min(need.cores, node.spec.cores)
    assert sum(units for _, units in share.gpus) == need.gpu_units
    parts = [units for _, units in share.gpus if units % WHOLE]
    assert all(units % need.gpu_part == 0 for units in parts)


@settings(max_examples=300, deadline=None)
@given(SHAPES, st.lists(st.tuples(RESOURCES, st.integers(0, 9)), max_size=20))
def test_nothing_is_shared_that_is_not_to_be_and_no_free_fit_is_left(
    shapes: list[tuple[int, int]], arrivals: list[tuple[Resources, int]]
) -> None:
    empty = free = nodes(*shapes)
    running: list[tuple[Need, Placement]] = []
    for resources, ending in arrivals:
        need = Need.of(resources)
        placement = place(free, need)
        able = sum(fits(node, need) for node in free)
        assert (placement is not None) == (able >= need.nodes)
        assert (room(free, need) > 0) == (placement is not None)
        if placement:
            assert obstacle([node.spec for node in free], need) is None
            assert len({share.node for share in placement.shares}) == need.nodes
            for share in placement.shares:
                check_share(share, need, free[share.node])
            free = occupy(free, placement)
            running.append((need, placement))
        check_sharing(free, running)
        if running and ending < 5:
            free = vacate(free, running.pop(ending % len(running))[1])
    for _, placement in running:
        free = vacate(free, placement)
    assert free == empty


def check_sharing(free: tuple[Node, ...], running: list[tuple[Need, Placement]]) -> None:
    """That all is where it is once, and what is free is what nobody has."""
    for index, node in enumerate(free):
        here = [share for _, placement in running for share in placement.shares if share.node == index]
        cores = node.cores
        for share in here:
            assert not cores & share.cores, "a core is free and taken, or taken twice"
            cores |= share.cores
        assert cores == (1 << node.spec.cores) - 1
        assert node.occupancy == WHOLE - sum(share.occupancy for share in here) >= 0
        for gpu, units in enumerate(node.gpus):
            assert units == WHOLE - sum(dict(share.gpus).get(gpu, 0) for share in here) >= 0


def taken(free: tuple[Node, ...], **resources: float) -> tuple[Node, ...]:
    """With one such job."""
    placement = place(free, Need.of(Resources.model_validate(resources)))
    assert placement is not None
    return occupy(free, placement)


def test_what_is_free_in_a_few_numbers() -> None:
    empty = nodes((8, 2), (8, 2), (8, 2))
    assert vacancies(empty) == [Vacancy(nodes=3, packing=1, cores=None, gpus=2 * WHOLE, aggregate=3)]
    third = taken(empty, node_packing_count=3, threads_per_rank=3, gpus_per_rank=1.5)
    whole = Vacancy(nodes=2, packing=1, cores=None, gpus=2 * WHOLE, aggregate=pytest.approx(8 / 3))
    assert vacancies(third) == [whole, whole._replace(nodes=3, packing=2, cores=5, gpus=WHOLE // 2)]
    rest = taken(third, num_nodes=2)
    left = Vacancy(nodes=1, packing=2, cores=5, gpus=WHOLE // 2, aggregate=pytest.approx(2 / 3))
    assert vacancies(rest) == [left]
    last = taken(taken(rest, node_packing_count=3, threads_per_rank=5), node_packing_count=3)
    assert vacancies(last) == [Vacancy()]  # a rounding is left of it


@given(st.lists(st.integers(1, 7), max_size=12), st.integers(1, 8))
def test_a_job_that_has_a_place_is_asked_for(packings: list[int], wanted: int) -> None:
    free = nodes((4, 0), (4, 0), (4, 0))
    for packing in packings:
        need = Need.of(Resources(node_packing_count=packing))
        if placement := place(free, need):
            free = occupy(free, placement)
    fits = place(free, Need.of(Resources(node_packing_count=wanted))) is not None
    assert fits == any(each.nodes and each.packing <= wanted for each in vacancies(free))
