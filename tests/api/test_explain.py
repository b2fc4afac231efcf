"""`Job.explain()`."""

from __future__ import annotations

from typing import Any

import pytest

from balsam_exec.api import Client, Site
from balsam_exec.model.errors import InvalidRequest
from balsam_exec.model.explain import Cause


def test_a_sentence_with_reasons(echo: Any, site: Site, client: Client) -> None:
    parent = echo.submit("parent", words="hi")
    job = echo.submit("w", words="hi", parent_ids=[parent])
    found = job.explain()
    assert str(found) == f"job {job.id} is AWAITING_PARENTS: its parent has yet to finish: {parent.id} (PREPROCESSED)"
    [reason] = found.reasons
    assert reason.code == Cause.PARENTS_PENDING
    assert reason.detail["ids"] == [parent.id]
    assert f"no launcher runs at site {site.name}" in str(parent.explain())


def test_it_is_asked_anew(echo: Any, client: Client) -> None:
    job = echo.submit("w", words="hi")
    client.service.kill_jobs([job.id])
    assert job.state == "PREPROCESSED", "as far as was seen"
    assert [reason.code for reason in job.explain().reasons] == [Cause.KILLED]


def test_an_unsaved_job_has_nothing_to_explain(echo: Any) -> None:
    with pytest.raises(InvalidRequest, match="not saved yet"):
        echo.submit("w", save=False, words="hi").explain()
