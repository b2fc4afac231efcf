"""What settings.yml lets allocations ask for, and whether the agent's own requests keep to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from balsam_exec.model.allowed import Allowed, QueueLimits
from balsam_exec.model.errors import ConfigurationError
from balsam_exec.platform.settings import SiteDirectory, SiteSettings

QUEUES = {"debug": {"max_nodes": 2, "max_wall_time_min": 60, "max_queued_jobs": 1}, "prod": {}}


def load(tmp_path: Path, **values: Any) -> SiteSettings:
    site = SiteDirectory(tmp_path)
    site.settings_file.write_text(json.dumps({"name": "here", **values}))
    return site.settings()


def test_by_default_anything_is_allowed(tmp_path: Path) -> None:
    assert load(tmp_path).allowed == Allowed()


def test_as_they_are_written(tmp_path: Path) -> None:
    settings = load(
        tmp_path, allowed_queues=QUEUES, allowed_projects=["md"], optional_batch_job_params={"qos": None, "fs": "home"}
    )
    assert settings.allowed.allowed_queues == {
        "debug": QueueLimits(max_nodes=2, max_wall_time_min=60, max_queued_jobs=1),
        "prod": QueueLimits(),
    }
    assert settings.allowed.completed({"qos": "high"}) == {"qos": "high", "fs": "home"}


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (
            {"allowed_queues": {"debug": {"max_node": 2}}},
            "there is no setting 'allowed_queues.debug.max_node' (there are: max_nodes,",
        ),
        ({"allowed_queues": {"debug": {"max_nodes": 0}}}, "allowed_queues.debug.max_nodes: "),
        ({"allowed_projects": "md"}, "allowed_projects: "),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        load(tmp_path, **values)
    assert problem in str(refused.value)


ELASTIC = {"enabled": True, "submit_queue": "debug", "max_wall_time_min": 60}


@pytest.mark.parametrize(
    ("section", "values", "problem"),
    [
        ("elastic_queue", {**ELASTIC, "max_num_nodes": 3}, "num_nodes is 3, and queue 'debug' gives 2 at most"),
        ("elastic_queue", {**ELASTIC, "max_wall_time_min": 61}, "queue 'debug' gives 60 at most"),
        ("elastic_queue", {**ELASTIC, "max_queued_jobs": 2}, "it has up to 2 allocations, and queue 'debug' takes 1"),
        ("elastic_queue", {**ELASTIC, "submit_queue": "local"}, "queue 'local' is not among its queues: debug, prod"),
        (
            "queue_maintainer",
            {"enabled": True, "submit_queue": "debug", "num_nodes": 3},
            "num_nodes is 3, and queue 'debug' gives 2 at most",
        ),
        (
            "queue_maintainer",
            {"enabled": True, "submit_queue": "prod", "optional_params": {"x": "1"}},
            "optional_params x are not among those it takes: qos",
        ),
    ],
)
def test_the_agents_own_requests_must_be_allowed(
    tmp_path: Path, section: str, values: dict[str, Any], problem: str
) -> None:
    allowed = {"allowed_queues": QUEUES, "optional_batch_job_params": {"qos": None}}
    load(tmp_path, **allowed, **{section: {**values, "enabled": False}})
    with pytest.raises(ConfigurationError) as refused:
        load(tmp_path, **allowed, **{section: values})
    assert f"{section}: " in str(refused.value)
    assert problem in str(refused.value)


def test_what_fits_is_taken(tmp_path: Path) -> None:
    assert load(tmp_path, allowed_queues=QUEUES, elastic_queue=ELASTIC).elastic_queue.enabled
