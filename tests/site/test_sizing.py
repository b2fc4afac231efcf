"""How many nodes to ask for, and for how long."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from balsam_exec.site.sizing import Allocation, Limits, Phase, Plan, Shape, Window, Work, plan, shortfall

#: Up to 5 allocations of up to 10 nodes, of 35 to 360 minutes, 5 of which are not for jobs.
LIMITS = Limits(
    min_num_nodes=1,
    max_num_nodes=10,
    min_wall_time_min=35,
    max_wall_time_min=365,
    wall_time_pad_min=5,
    max_queued_jobs=5,
)


def waiting(id_: int, nodes: int, minutes: int, **more: object) -> Allocation:
    return Allocation(id_, nodes, minutes, Phase.WAITING, **more)  # type: ignore[arg-type]


def running(id_: int, nodes: int, minutes: int, **more: object) -> Allocation:
    return Allocation(id_, nodes, minutes, Phase.RUNNING, **more)  # type: ignore[arg-type]


def shapes(found: Plan) -> list[tuple[int, int]]:
    return [(shape.num_nodes, shape.wall_time_min) for shape in found.create]


# --- by example


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        ([], []),
        ([Work(1, 30, 0)], []),
        ([Work(1, 30, 1)], [(1, 35)]),
        ([Work(1, 30, 10)], [(10, 35)]),
        ([Work(1, 30, 25)], [(10, 35), (10, 35), (5, 35)]),
        ([Work(1, 30, 64, per_node=16)], [(4, 35)]),  # 16 to a node
        ([Work(1, 10, 9)], [(3, 35)]),  # three after another
        ([Work(1, 1, 10)], [(1, 35)]),  # one node is more than enough
        ([Work(1, 100, 3)], [(3, 105)]),
        ([Work(8, 30, 1)], [(8, 35)]),
        ([Work(6, 30, 2)], [(6, 35), (6, 35)]),  # no two fit into ten nodes
        ([Work(6, 15, 2)], [(6, 35)]),  # one after the other
        ([Work(4, 30, 2)], [(8, 35)]),
        ([Work(1, 300, 1), Work(1, 30, 8)], [(1, 305), (8, 35)]),  # what is short does not wait for what is long
        ([Work(1, 40, 1), Work(1, 60, 1)], [(2, 65)]),  # about as long: together
        ([Work(1, 30, 50)], [(10, 35)] * 5),
        ([Work(1, 30, 51)], [(10, 65), (10, 65), (6, 65)]),  # more than the limits let be done at once: longer
        ([Work(1, 30, 100)], [(10, 65)] * 5),
        ([Work(1, 30, 1_000_000)], [(10, 365)] * 5),
    ],
)
def test_shapes(work: list[Work], expected: list[tuple[int, int]]) -> None:
    assert shapes(plan(work, [], LIMITS)) == expected


def test_what_never_fits_is_told_and_asks_for_nothing() -> None:
    found = plan([Work(11, 30, 2), Work(1, 361, 3), Work(1, 360, 1)], [], LIMITS)
    assert found.beyond_limits == 5
    assert shapes(found) == [(1, 365)]


def test_what_exists_is_taken_off() -> None:
    work = [Work(1, 30, 12)]
    assert shapes(plan(work, [waiting(1, 4, 35)], LIMITS)) == [(8, 35)]
    assert shapes(plan(work, [running(1, 4, 35)], LIMITS)) == [(8, 35)]
    assert shapes(plan(work, [waiting(1, 4, 35, own=False)], LIMITS)) == [(8, 35)]


def test_an_allocation_does_only_what_fits_into_it() -> None:
    assert shapes(plan([Work(8, 30, 1)], [running(1, 7, 300)], LIMITS)) == [(8, 35)]
    assert shapes(plan([Work(1, 30, 1)], [running(1, 7, 29)], LIMITS)) == [(1, 35)]
    assert shapes(plan([Work(1, 30, 1)], [waiting(1, 7, 34)], LIMITS)) == [(1, 35)]
    assert shapes(plan([Work(1, 30, 1)], [waiting(1, 7, 3)], LIMITS)) == [(1, 35)]


def test_a_busy_allocation_does_less() -> None:
    busy = running(1, 4, 100, held=Fraction(4 * 30))
    assert shapes(plan([Work(1, 30, 2)], [replace(busy, held=Fraction(2 * 30))], LIMITS)) == []
    assert shapes(plan([Work(1, 30, 2)], [busy], LIMITS)) == [(2, 35)]


def test_what_runs_for_long_does_not_keep_a_burst_waiting() -> None:
    """It could do all of it in five hours; the horizon is half an hour."""
    assert shapes(plan([Work(1, 30, 20)], [running(1, 2, 300)], LIMITS)) == [(10, 35), (8, 35)]


def test_what_is_superfluous_is_taken_back() -> None:
    queue = [waiting(1, 2, 35), waiting(2, 2, 35), waiting(3, 2, 35, own=False)]
    assert plan([], queue, LIMITS).delete == (1, 2)
    assert plan([Work(1, 30, 2)], queue, LIMITS).delete == (2,)
    assert plan([Work(1, 30, 3)], queue, LIMITS).delete == ()
    assert plan([], [running(1, 2, 35)], LIMITS) == Plan()
    assert plan([], [Allocation(1, 2, 35, Phase.ENDING)], LIMITS) == Plan()


def test_what_has_waited_too_long_is_taken_back_and_asked_for_again() -> None:
    limits = replace(LIMITS, max_queue_wait_time_min=10)
    found = plan([Work(1, 30, 2)], [waiting(1, 1, 35, waited_min=10), waiting(2, 1, 35, waited_min=9.9)], limits)
    assert found == Plan(create=(Shape(1, 35),), delete=(1,))


def test_what_is_being_deleted_counts_for_the_limits_and_does_nothing() -> None:
    ending = [Allocation(n, 10, 35, Phase.ENDING) for n in range(4)]
    assert shapes(plan([Work(1, 30, 20)], ending, LIMITS)) == [(10, 65)]
    limits = replace(LIMITS, max_total_nodes=43)
    assert shapes(plan([Work(1, 30, 2)], ending, limits)) == [(2, 35)]
    assert shapes(plan([Work(1, 30, 2)], ending, replace(limits, max_total_nodes=40))) == []


def test_a_wide_job_is_waited_for() -> None:
    """Two nodes are left of the limit. Small allocations would take them for ever."""
    limits = replace(LIMITS, max_total_nodes=10)
    assert shapes(plan([Work(4, 30, 1), Work(1, 30, 5)], [running(1, 8, 10)], limits)) == []
    assert shapes(plan([Work(1, 30, 5)], [running(1, 8, 10)], limits)) == [(2, 95)]


def test_an_allocation_has_as_many_nodes_as_the_queue_demands() -> None:
    limits = replace(LIMITS, min_num_nodes=4)
    assert shapes(plan([Work(1, 30, 1)], [], limits)) == [(4, 35)]
    assert shapes(plan([Work(1, 30, 1)], [], replace(limits, max_total_nodes=3))) == []


def test_windows_are_filled_first() -> None:
    work = [Work(1, 30, 12)]
    assert shapes(plan(work, [], LIMITS, [Window(4, 60)])) == [(4, 35), (8, 35)]
    assert shapes(plan(work, [], LIMITS, [Window(4, 100)])) == [(4, 95)]
    assert shapes(plan(work, [], LIMITS, [Window(3, 1000)])) == [(3, 125)]
    assert shapes(plan([Work(1, 30, 1)], [], LIMITS, [Window(3, 39)])) == [(1, 35)]


def test_a_window_is_filled_once_though_something_waits_in_the_queue() -> None:
    work = [Work(8, 30, 1), Work(1, 30, 4)]
    first = plan(work, [], LIMITS, [Window(4, 40)])
    assert shapes(first) == [(4, 35), (8, 35)]
    queue = [waiting(1, 4, 35), waiting(2, 8, 35)]
    assert plan(work, queue, LIMITS, [Window(4, 40)]) == Plan()
    # A gap opens while a larger one waits: it is used, and what waits goes on waiting.
    more = plan([Work(1, 30, 8)], [waiting(1, 8, 35)], LIMITS, [Window(4, 40)])
    assert more == Plan(create=(Shape(4, 35),))
    # And so do both, until the gap closes.
    both = [waiting(1, 8, 35), waiting(2, 4, 35)]
    assert plan([Work(1, 30, 8)], both, LIMITS, [Window(4, 40)]) == Plan()
    assert plan([Work(1, 30, 8)], both, LIMITS) == Plan(delete=(2,))


def test_a_fixed_number() -> None:
    shape = Shape(2, 60)
    assert shortfall(3, shape, []).create == (shape,) * 3
    have = [waiting(1, 2, 60), running(2, 2, 60), running(3, 2, 60, own=False)]
    assert shortfall(3, shape, have).create == (shape,)
    assert shortfall(1, shape, have) == Plan()


# --- whatever the facts

works = st.lists(
    st.builds(
        lambda nodes, minutes, count, per_node: Work(nodes, minutes, count, per_node if nodes == 1 else 1),
        st.integers(1, 12),
        st.integers(1, 130),
        st.integers(0, 20) | st.integers(0, 10_000),
        st.sampled_from([1, 1, 2, 7, 64]),
    ),
    max_size=6,
)


@st.composite
def some_limits(draw: st.DrawFn) -> Limits:
    least = draw(st.integers(1, 3))
    pad = draw(st.integers(0, 5))
    shortest = draw(st.integers(pad + 1, 40))
    return Limits(
        min_num_nodes=least,
        max_num_nodes=draw(st.integers(least, 12)),
        min_wall_time_min=shortest,
        max_wall_time_min=draw(st.integers(shortest, 140)),
        wall_time_pad_min=pad,
        max_queued_jobs=draw(st.integers(1, 6)),
        max_total_nodes=draw(st.none() | st.integers(least, 40)),
        max_queue_wait_time_min=draw(st.none() | st.integers(1, 20)),
    )


@st.composite
def some_allocations(draw: st.DrawFn) -> list[Allocation]:
    fields = st.tuples(
        st.integers(1, 12),
        st.integers(0, 140),
        st.sampled_from(Phase),
        st.booleans(),
        st.integers(0, 30),
        st.fractions(0, 500, max_denominator=8),
    )
    return [Allocation(n, *each) for n, each in enumerate(draw(st.lists(fields, max_size=5)), 1)]


windows = st.lists(st.builds(Window, st.integers(1, 12), st.integers(1, 200)), max_size=3)


def carried_out(found: Plan, allocations: list[Allocation]) -> list[Allocation]:
    """What there is once the plan is."""
    kept = [replace(a, phase=Phase.ENDING) if a.id in found.delete else a for a in allocations]
    first = max((a.id for a in allocations), default=0) + 1
    return kept + [waiting(n, s.num_nodes, s.wall_time_min) for n, s in enumerate(found.create, first)]


@given(works, some_allocations(), some_limits(), windows)
def test_the_limits_hold(work: list[Work], have: list[Allocation], limits: Limits, gaps: list[Window]) -> None:
    found = plan(work, have, limits, gaps)
    for shape in found.create:
        assert limits.min_num_nodes <= shape.num_nodes <= limits.max_num_nodes
        assert limits.min_wall_time_min <= shape.wall_time_min <= limits.max_wall_time_min
    own = [a.num_nodes for a in have if a.own] + [shape.num_nodes for shape in found.create]
    if found.create:
        assert len(own) <= limits.max_queued_jobs
        assert limits.max_total_nodes is None or sum(own) <= limits.max_total_nodes


@given(works, some_allocations(), some_limits(), windows)
def test_only_ones_own_that_wait_are_taken_back(
    work: list[Work], have: list[Allocation], limits: Limits, gaps: list[Window]
) -> None:
    ours = {a.id for a in have if a.own and a.phase is Phase.WAITING}
    found = plan(work, have, limits, gaps)
    assert set(found.delete) <= ours
    if not work:
        assert set(found.delete) == ours


@given(works, some_allocations(), some_limits(), windows)
def test_each_allocation_has_work(work: list[Work], have: list[Allocation], limits: Limits, gaps: list[Window]) -> None:
    found = plan(work, have, limits, gaps)
    fitting = [w for w in work if w.count and w.num_nodes <= limits.widest and w.minutes <= limits.longest]
    assert found.beyond_limits == sum(w.count for w in work) - sum(w.count for w in fitting)
    for shape in found.create:
        minutes = shape.wall_time_min - limits.wall_time_pad_min
        assert any(w.num_nodes <= shape.num_nodes and w.minutes <= minutes for w in fitting)
    # Nor more nodes than there are jobs to be run at once.
    most = sum(w.count * w.num_nodes for w in fitting)
    assert sum(s.num_nodes for s in found.create) <= most + len(found.create) * (limits.min_num_nodes - 1)


@given(works, some_allocations(), some_limits(), windows)
def test_once_carried_out_nothing_more_is_asked_for(
    work: list[Work], have: list[Allocation], limits: Limits, gaps: list[Window]
) -> None:
    found = plan(work, have, limits, gaps)
    again = plan(work, carried_out(found, have), limits, gaps)
    assert (again.create, again.delete) == ((), ())


@given(works, some_allocations(), some_limits(), windows, st.randoms())
def test_the_order_of_the_facts_says_nothing(
    work: list[Work], have: list[Allocation], limits: Limits, gaps: list[Window], random: object
) -> None:
    mixed = [list(work), list(have), list(gaps)]
    for facts in mixed:
        random.shuffle(facts)  # type: ignore[attr-defined]
    assert plan(mixed[0], mixed[1], limits, mixed[2]) == plan(work, have, limits, gaps)  # type: ignore[arg-type]


@given(works, some_limits())
def test_with_more_work_no_fewer_nodes(work: list[Work], limits: Limits) -> None:
    plenty = replace(limits, max_queued_jobs=10**9, max_total_nodes=None)
    assume(sum(w.count * w.num_nodes for w in work) < 200)
    more = [replace(w, count=w.count + 5) for w in work]
    assert nodes_of(plan(work, [], plenty)) <= nodes_of(plan(more, [], plenty))


@given(works, some_limits(), some_allocations())
def test_what_exists_is_not_asked_for_again(work: list[Work], limits: Limits, have: list[Allocation]) -> None:
    """With one class of jobs; with several, an allocation that does the small ones may leave the large ones."""
    assume(sum(w.count * w.num_nodes for w in work) < 200)
    plenty = replace(limits, max_queued_jobs=10**9, max_total_nodes=None, max_queue_wait_time_min=None)
    for each in work:
        assert nodes_of(plan([each], have, plenty)) <= nodes_of(plan([each], [], plenty))


def nodes_of(found: Plan) -> int:
    return sum(shape.num_nodes for shape in found.create)


@given(works, some_limits())
def test_everything_that_fits_is_done_in_the_end(work: list[Work], limits: Limits) -> None:
    """Each plan is carried out and its allocations run: they do what they can, the widest and longest first."""
    assume(sum(w.count for w in work) < 100)
    limits = replace(
        limits, max_total_nodes=None if limits.max_total_nodes is None else max(12, limits.max_total_nodes)
    )
    left = [replace(w) for w in work if w.num_nodes <= limits.widest and w.minutes <= limits.longest]
    for _ in range(sum(w.count for w in work) + 1):
        found = plan(left, [], limits)
        if not found.create:
            break
        for shape in found.create:
            left = after(left, shape, limits)
    assert sum(w.count for w in left) == 0


def after(work: list[Work], shape: Shape, limits: Limits) -> list[Work]:
    """What an allocation leaves that does one job, of the widest kind that fits; another may have done its own."""
    minutes = shape.wall_time_min - limits.wall_time_pad_min
    order = sorted(work, key=lambda w: (w.num_nodes, w.minutes), reverse=True)
    for w in order:
        if w.count and w.num_nodes <= shape.num_nodes and w.minutes <= minutes:
            return [replace(x, count=x.count - 1) if x is w else x for x in work]
    return work
