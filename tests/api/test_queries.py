"""`objects`: lookups, chains, slices, pages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from balsam_exec.api import Client, Job, JobState, Site
from balsam_exec.api.jobs import JobQuerySet
from balsam_exec.model.base import MAX_PAGE
from balsam_exec.model.errors import InvalidRequest


@pytest.fixture
def jobs(echo: Any, client: Client) -> list[Job]:
    """Twelve jobs: workdir sim/0 ... md/11, num_nodes 1 ... 12, tags i (its number) and half."""
    return client.Job.objects.bulk_create(
        echo.submit(
            f"{'sim' if i % 2 == 0 else 'md'}/{i}",
            words="x",
            num_nodes=i + 1,
            tags={"i": str(i), "half": "first" if i < 6 else "second"},
            save=False,
        )
        for i in range(12)
    )


@pytest.fixture
def mine(client: Client, site: Site, jobs: list[Job]) -> JobQuerySet:
    return client.Job.objects.filter(site=site)


def numbers(found: Iterator[Job] | JobQuerySet) -> list[int]:
    return [int(job.tags["i"]) for job in found]


@pytest.mark.parametrize(
    ("lookups", "expected"),
    [
        ({"num_nodes": 3}, [2]),
        ({"num_nodes": [3, 4, 99]}, [2, 3]),
        ({"num_nodes__in": {3}}, [2]),
        ({"num_nodes__exact": 3}, [2]),
        ({"num_nodes__lt": 3}, [0, 1]),
        ({"num_nodes__lte": 3}, [0, 1, 2]),
        ({"num_nodes__gt": 11}, [11]),
        ({"num_nodes__gte": 11, "num_nodes__lt": 12}, [10]),
        ({"num_nodes__ne": list(range(1, 11))}, [10, 11]),
        ({"workdir__contains": "m/1"}, [10]),
        ({"workdir__startswith": "md/1"}, [1, 11]),
        ({"tags": {"half": "second", "i": "7"}}, [7]),
        ({"tags": "i:7"}, [7]),
        ({"tags": {"half": "third"}}, []),
        ({"state": "PREPROCESSED", "num_nodes": 1}, [0]),
        ({"state": [JobState.FAILED, JobState.RUNNING]}, []),
        ({"num_nodes": []}, []),
        ({"app_name": "Echo", "num_nodes": 1}, [0]),
    ],
)
def test_lookups(mine: JobQuerySet, lookups: dict[str, Any], expected: list[int]) -> None:
    found = mine.filter(**lookups)
    assert numbers(found) == expected
    assert len(found) == len(expected)
    assert mine.filter(**lookups).count() == len(expected)
    assert bool(mine.filter(**lookups)) is bool(expected)


def test_chains_narrow_and_leave_the_original_alone(mine: JobQuerySet) -> None:
    small = mine.filter(num_nodes__lte=6).filter(num_nodes__lte=9).filter(num_nodes=[1, 2, 3]).filter(num_nodes=[3, 4])
    assert numbers(small) == [2]
    assert small.filter(num_nodes=7).count() == 0
    assert small.filter(num_nodes=7).filter(num_nodes=3).count() == 0
    assert numbers(mine.filter(tags={"half": "first"}).filter(tags={"i": "3"})) == [3]
    assert mine.count() == 12
    with pytest.raises(InvalidRequest, match="given twice"):
        mine.filter(workdir__contains="a").filter(workdir__contains="b")


@pytest.mark.parametrize(
    ("lookup", "expected"),
    [
        ({"num_nodes": 1}, list(range(1, 12))),
        ({"num_nodes": [1, 2]}, list(range(2, 12))),
        ({"num_nodes": []}, list(range(12))),
        ({"num_nodes__lt": 12}, [11]),
        ({"num_nodes__gte": 2}, [0]),
        ({"num_nodes__ne": 5}, [4]),
        ({"state": "PREPROCESSED"}, []),
    ],
)
def test_exclude(mine: JobQuerySet, lookup: dict[str, Any], expected: list[int]) -> None:
    assert numbers(mine.exclude(**lookup)) == expected


def test_what_exclude_cannot_say(mine: JobQuerySet) -> None:
    for lookup in ({"workdir__contains": "x"}, {"tags": {"i": "1"}}, {"num_nodes": 1, "state": "FAILED"}, {}):
        with pytest.raises(InvalidRequest):
            mine.exclude(**lookup)
    assert numbers(mine.exclude(num_nodes=1).exclude(num_nodes=[2, 3]).filter(num_nodes__lt=6)) == [3, 4]


@pytest.mark.parametrize(
    "lookups",
    [{"colour": 1}, {"workdir__gt": "x"}, {"num_nodes__contains": 1}, {"limit": 3}, {"ordering": "id"}, {"data": {}}],
)
def test_an_unknown_lookup_names_the_legal_ones(client: Client, lookups: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="num_nodes__gte"):
        client.Job.objects.filter(**lookups)


@pytest.mark.parametrize("lookups", [{"state": "DONE"}, {"id": -1}, {"num_nodes__lt": "x"}, {"num_nodes": None}])
def test_a_bad_value_is_told_at_once(client: Client, lookups: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        client.Job.objects.filter(**lookups)


def test_order_and_slices(mine: JobQuerySet) -> None:
    assert numbers(mine.order_by("-num_nodes")[:3]) == [11, 10, 9]
    assert numbers(mine.order_by("-id")[2:4]) == [9, 8]
    assert numbers(mine[10:]) == [10, 11]
    assert numbers(mine[3:9][2:4]) == [5, 6]
    assert numbers(mine[3:5][1:10]) == [4]
    assert mine[3:9].count() == 6
    assert mine[10:99].count() == 2
    assert mine[3:3].count() == 0
    assert not mine[3:3]
    assert mine[4].tags["i"] == "4"
    assert mine.order_by("-id")[0].tags["i"] == "11"
    with pytest.raises(IndexError):
        mine[12]


@pytest.mark.parametrize("bad", [-1, slice(-3, None), slice(None, -1), slice(0, 10, 2)])
def test_slices_that_are_refused(mine: JobQuerySet, bad: Any) -> None:
    with pytest.raises(InvalidRequest):
        mine[bad]


def test_after_slicing_nothing_is_filtered(mine: JobQuerySet) -> None:
    for misuse in (
        lambda q: q.filter(num_nodes=1),
        lambda q: q.order_by("id"),
        lambda q: q.update(num_nodes=1),
        lambda q: q.delete(),
    ):
        with pytest.raises(InvalidRequest, match="slic"):
            misuse(mine[:3])
    with pytest.raises(InvalidRequest, match="colour"):
        mine.order_by("colour")


def test_first_exists_and_membership(mine: JobQuerySet, jobs: list[Job]) -> None:
    assert mine.first() == jobs[0]
    assert mine.order_by("-id").first() == jobs[-1]
    assert mine.filter(num_nodes=99).first() is None
    assert mine.exists()
    assert not mine.filter(num_nodes=99).exists()
    assert jobs[3] in mine.all()


def test_a_query_is_lazy_and_asks_once(mine: JobQuerySet, jobs: list[Job], client: Client) -> None:
    found = mine.filter(num_nodes__lte=3)
    client.Job.objects.filter(id=jobs[0]).delete()
    assert len(found) == 2  # asked only now
    client.Job.objects.filter(id=jobs[1]).delete()
    assert len(list(found)) == 2  # and not again
    assert len(found.all()) == 1


@pytest.mark.parametrize("page", [1, 4, 5, 6, 12, 13])
def test_pages_follow_each_other(mine: JobQuerySet, page: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("balsam_exec.api.queryset.MAX_PAGE", page)
    assert page < MAX_PAGE
    for ordering in ("id", "-id", "num_nodes", "-num_nodes"):
        expected = sorted(range(12), reverse=ordering.startswith("-"))
        assert numbers(mine.order_by(ordering)) == expected
        assert numbers(mine.order_by(ordering)[1:8]) == expected[1:8]
        assert numbers(mine.order_by(ordering)[4:].iterator()) == expected[4:]


def test_pages_are_fetched_as_needed(mine: JobQuerySet, jobs: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("balsam_exec.api.queryset.MAX_PAGE", 5)
    seen = mine.iterator()
    assert next(seen) == jobs[0]
    for job in jobs[5:]:
        job.delete()
    assert numbers(seen) == [1, 2, 3, 4]


def test_count_states_update_and_delete_are_one_request(mine: JobQuerySet, client: Client) -> None:
    assert mine.states() == {JobState.PREPROCESSED: 12}
    assert mine.filter(num_nodes__lte=4).update(state="FAILED", tags={"i": "0"}) == 4
    assert mine.states() == {JobState.PREPROCESSED: 8, JobState.FAILED: 4}
    assert mine.filter(state="FAILED").update(state="RESTART_READY") == 4  # seed 002's classic
    assert mine.filter(num_nodes=[]).update(num_nodes=1) == 0
    assert mine.filter(num_nodes=[]).delete() == 0
    assert mine.filter(num_nodes__gt=4).delete() == 8
    assert mine.count() == 4


def test_update_is_checked_before_it_is_sent(mine: JobQuerySet) -> None:
    for changes, said in (
        ({"colour": "red"}, "colour"),
        ({"num_nodes": 0}, "num_nodes"),
        ({"num_nodes": None}, "None"),
        ({"state": "DONE"}, "state"),
        ({"parameters": {}}, "bulk_update"),
    ):
        with pytest.raises(InvalidRequest, match=said):
            mine.update(**changes)


def test_nothing_is_deleted_without_a_filter(client: Client, jobs: list[Job]) -> None:
    with pytest.raises(InvalidRequest):
        client.Job.objects.all().delete()
    with pytest.raises(InvalidRequest):
        client.Job.objects.delete()
    assert client.Job.objects.filter(id=jobs).count() == 12


def test_sites_in_lookups(client: Client, site: Site, jobs: list[Job], echo: Any) -> None:
    for value in (site, site.id, site.name, [site.name]):
        assert client.Job.objects.filter(site=value).count() == 12
        assert client.Job.objects.filter(site_id=value).count() == 12
    assert client.Job.objects.filter(app_id=echo).count() == 12
    assert client.Job.objects.filter(app=echo.__app_id__).count() == 12
    with pytest.raises(LookupError, match="no site named 'atlantis'"):
        client.Job.objects.filter(site="atlantis")


def test_a_repr_shows_some(mine: JobQuerySet) -> None:
    assert repr(mine[:1]).startswith("<Job.objects: [Job(id=")
    assert repr(mine).count("Job(id=") == 12
