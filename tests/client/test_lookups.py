from __future__ import annotations

from datetime import UTC, datetime

import pytest

from balsam_exec.client.lookups import build, legal_lookups, url_params
from balsam_exec.model.errors import InvalidRequest
from balsam_exec.model.queries import FeedQuery, JobQuery, SiteQuery


def test_one_value_stands_for_a_list_of_one() -> None:
    query = build(JobQuery, {"state": "FAILED", "id": (1, 2), "num_nodes__lte": 128})
    assert url_params(query) == [("id", "1"), ("id", "2"), ("state", "FAILED"), ("num_nodes__lte", "128")]


def test_tags_are_written_as_a_dict() -> None:
    assert url_params(build(JobQuery, {"tags": {"kind": "md", "x": "a:b"}})) == [("tags", "kind:md"), ("tags", "x:a:b")]


def test_defaults_are_not_sent_and_what_is_sent_is_read_back() -> None:
    when = datetime(2026, 1, 2, 3, tzinfo=UTC)
    query = build(JobQuery, {"created__gte": when, "limit": 7, "ordering": "-id"})
    sent = dict(url_params(query))
    assert set(sent) == {"created__gte", "limit", "ordering"}
    assert datetime.fromisoformat(sent["created__gte"]) == when
    assert url_params(JobQuery()) == []
    assert url_params(build(FeedQuery, {"include_results": True})) == [("include_results", "true")]


@pytest.mark.parametrize(
    ("lookups", "said"),
    [
        ({"colour": "red"}, "workdir__contains"),  # it names those there are
        ({"workdir__lte": "x"}, "workdir__lte"),
        ({"state": "DONE"}, "DONE"),
        ({"id": [0]}, "id"),
        ({"num_nodes__lt": "many"}, "num_nodes__lt"),
        ({"limit": 0}, "limit"),
        ({"ordering": "colour"}, "ordering"),
        ({"state": {"a": "b"}}, "state"),
        ({"id": list(range(1, 2000))}, "id"),
    ],
)
def test_a_wrong_lookup_says_what_is_wrong(lookups: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        build(JobQuery, lookups)


def test_paging_is_no_lookup() -> None:
    assert "name__startswith" in legal_lookups(SiteQuery)
    assert not {"limit", "offset", "after", "ordering"} & set(legal_lookups(SiteQuery))
