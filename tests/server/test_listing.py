"""Queries: every lookup, orders, pages and counts."""

from __future__ import annotations

from typing import Any

import pytest

from balsam_exec.model.errors import InvalidRequest, TooLarge
from balsam_exec.model.queries import AppQuery, EventQuery, JobQuery, SiteQuery
from balsam_exec.server.service import apps, feed, jobs, sites
from balsam_exec.server.store.types import moment
from tests.server.world import SECOND, S, World


def found(world: World, **query: Any) -> list[int]:
    return [job["id"] for job in world.read(jobs.jobs, world.owner, JobQuery(**query))["results"]]


@pytest.fixture
def three(world: World) -> list[int]:
    a, b = world.create(
        world.spec(workdir="md/a", num_nodes=1, tags={"kind": "md", "n": "1"}, gpus_per_rank=0.5),
        world.spec(workdir="md/B_%", num_nodes=4, tags={"kind": "md", "n": "2"}, wall_time_min=10),
    )
    world.later(100)
    [c] = world.create(world.spec(world.hooked, workdir="dft/a", num_nodes=9, tags={"kind": "dft"}, parent_ids=[a]))
    return [a, b, c]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, "abc"),
        ({"state": ["PREPROCESSED"]}, "ab"),
        ({"state": ["PREPROCESSED", "AWAITING_PARENTS"]}, "abc"),
        ({"state__ne": ["PREPROCESSED"]}, "c"),
        ({"num_nodes__lt": 4}, "a"),
        ({"num_nodes__lte": 4}, "ab"),
        ({"num_nodes__gt": 4}, "c"),
        ({"num_nodes__gte": 4}, "bc"),
        ({"num_nodes": [1, 9]}, "ac"),
        ({"num_nodes__ne": [1, 9]}, "b"),
        ({"gpus_per_rank": [0.5]}, "a"),
        ({"wall_time_min__gt": 0}, "b"),
        ({"workdir": ["md/a"]}, "a"),
        ({"workdir__ne": ["md/a"]}, "bc"),
        ({"workdir__contains": "/a"}, "ac"),
        ({"workdir__contains": "_%"}, "b"),
        ({"workdir__contains": "b"}, ""),
        ({"workdir__startswith": "md/"}, "ab"),
        ({"workdir__startswith": "MD/"}, ""),
        ({"tags": ["kind:md"]}, "ab"),
        ({"tags": ["kind:md", "n:2"]}, "b"),
        ({"tags": ["kind:md", "n:3"]}, ""),
        ({"tags": ["kind:md"], "num_nodes__gt": 1, "workdir__contains": "B"}, "b"),
        ({"app_name": ["Hooked"]}, "c"),
        ({"app_name__startswith": "Pl"}, "ab"),
        ({"batch_job_id__ne": [1]}, "abc"),
        ({"created__gt": moment(1_700_000_050 * SECOND)}, "c"),
        ({"created__lte": moment(1_700_000_050 * SECOND)}, "ab"),
        ({"ordering": "-id"}, "cba"),
        ({"ordering": "-num_nodes"}, "cba"),
        ({"ordering": "-wall_time_min"}, "bca"),
        ({"ordering": "-created"}, "cba"),
        ({"tags": ["kind:md"], "ordering": "-id"}, "ba"),
        ({"limit": 1, "offset": 1}, "b"),
    ],
)
def test_lookups(world: World, three: list[int], query: dict[str, Any], expected: str) -> None:
    assert found(world, **query) == [three["abc".index(letter)] for letter in expected]
    if not query.keys() & {"limit", "offset", "ordering"}:
        assert world.count(**query) == len(expected)
        states = world.read(jobs.states, world.owner, JobQuery(**query))
        assert sum(item["count"] for item in states) == len(expected)


def test_lookups_by_id(world: World, three: list[int]) -> None:
    a, b, c = three
    assert found(world, id=[a, c]) == [a, c]
    assert found(world, id__ne=[a, c]) == [b]
    assert found(world, id__gt=a, id__lte=b) == [b]
    assert found(world, parent_id=[a]) == [c]
    assert found(world, child_id=[c]) == [a]
    assert found(world, parent_id__ne=[a]) == [a, b]
    assert found(world, site_id=[world.site]) == three
    assert found(world, site_id__ne=[world.site]) == []
    assert found(world, app_id=[world.hooked]) == [c]


@pytest.mark.parametrize("query", [{}, {"tags": ["k:v"]}, {"ordering": "-id"}, {"tags": ["k:v"], "ordering": "-id"}])
def test_pages_by_key_have_every_job_once(world: World, query: dict[str, Any]) -> None:
    ids = world.create(*[world.spec(tags={"k": "v"})] * 7)
    seen: list[int] = []
    after = None
    for _ in range(4):
        page = world.read(jobs.jobs, world.owner, JobQuery(limit=2, after=after, **query))
        seen += [job["id"] for job in page["results"]]
        after = page["next"]
    assert after is None
    assert seen == (ids if "ordering" not in query else ids[::-1])


def test_pages_in_another_order_go_by_offset(world: World) -> None:
    world.create(*[world.spec()] * 3)
    page = world.read(jobs.jobs, world.owner, JobQuery(limit=2, ordering="created"))
    assert page["next"] is None
    with pytest.raises(InvalidRequest, match="use offset"):
        found(world, after=1, ordering="created")


def test_pages_are_bounded_in_bytes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "BUDGET", 1000)
    ids = world.create(*(world.spec(arguments=b"x" * size) for size in (2000, 400, 400, 400)))
    after, pages = None, []
    while True:
        page = world.read(jobs.jobs, world.owner, JobQuery(after=after))
        pages.append([job["id"] for job in page["results"]])
        after = page["next"]
        if after is None:
            break
    assert pages == [ids[:1], ids[1:3], ids[3:]]
    assert len(world.job(ids[0])["arguments"]) == 2000
    with pytest.raises(TooLarge, match="limit=1"):
        found(world, ordering="created")


def test_a_tag_has_a_key_and_a_value(world: World) -> None:
    with pytest.raises(InvalidRequest, match="key:value"):
        found(world, tags=["kind"])


def test_counts_by_state_come_from_counters(world: World, three: list[int]) -> None:
    world.finished(*[world.spec()] * 2)
    states = {item["state"]: item["count"] for item in world.read(jobs.states, world.owner, JobQuery())}
    assert states == {S.AWAITING_PARENTS: 1, S.JOB_FINISHED: 2, S.PREPROCESSED: 2}
    assert world.count(state=["JOB_FINISHED"]) == 2
    assert world.count(site_id=[world.site], state=["PREPROCESSED", "JOB_FINISHED"]) == 4
    assert world.count(site_id=[4711]) == 0


def test_other_resources_have_lookups_too(world: World) -> None:
    page = world.read(sites.sites, world.owner, SiteQuery(name__contains="er"), world.now)
    assert [site["name"] for site in page["results"]] == ["here"]
    page = world.read(apps.apps, world.owner, AppQuery(name__startswith="Hook", site_id=[world.site]))
    assert [app["name"] for app in page["results"]] == ["Hooked"]


def test_the_log_is_filtered(world: World, three: list[int]) -> None:
    def log(**query: Any) -> list[int]:
        page = world.read(feed.log, world.owner, EventQuery(**query))
        return [event["subject_id"] for event in page["results"]]

    a, b, c = three
    assert log(kind=["job"]) == [a, b, c]
    assert log(tags=["kind:md"]) == [a, b]
    assert log(job_id=[b]) == [b]
    assert log(kind=["job"], to_state=["AWAITING_PARENTS"]) == [c]
    assert log(kind=["job"], timestamp__gt=moment(1_700_000_050 * SECOND)) == [c]
    assert log(kind=["job"], ordering="-timestamp") == [c, b, a]
    assert log(kind=["site"]) == [world.site]
