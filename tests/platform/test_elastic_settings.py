"""The sections elastic_queue and queue_maintainer of settings.yml."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from balsam_exec.model.errors import ConfigurationError
from balsam_exec.platform.settings import SiteDirectory, SiteSettings


def load(tmp_path: Path, **sections: Any) -> SiteSettings:
    site = SiteDirectory(tmp_path)
    site.settings_file.write_text(json.dumps({"name": "here", **sections}))
    return site.settings()


def test_off_unless_switched_on(tmp_path: Path) -> None:
    for sections in ({}, {"elastic_queue": None, "queue_maintainer": None}, {"elastic_queue": {"max_num_nodes": 7}}):
        settings = load(tmp_path, **sections)
        assert not settings.elastic_queue.enabled
        assert not settings.queue_maintainer.enabled


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"max_nodes": 3}, "there is no setting 'elastic_queue.max_nodes' (there are: enabled, submit_queue"),
        ({"min_wall_time_min": 5}, "wall_time_pad_min leaves no time of min_wall_time_min for jobs"),
        ({"max_wall_time_min": 30}, "max_wall_time_min is less than min_wall_time_min"),
        ({"min_num_nodes": 2}, "max_num_nodes is less than min_num_nodes"),
        ({"min_num_nodes": 2, "max_num_nodes": 2, "max_total_nodes": 1}, "max_total_nodes is less than min_num_nodes"),
        ({"use_backfill": True}, "use_backfill wants the name of a queue"),
        ({"max_queued_jobs": 0}, "elastic_queue.max_queued_jobs: "),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        load(tmp_path, elastic_queue=values)
    assert problem in str(refused.value)
