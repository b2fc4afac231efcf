"""Schemathesis over the OpenAPI document: whatever it makes up, no route answers with a 5xx."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from balsam_exec.model.errors import SiteUnreachable
from tests.server.http import Http
from tests.server.machines import EFFORT, TIMEOUT
from tests.server.test_feed import Campaign
from tests.support.services import LiveService


@pytest.fixture(scope="module")
def openapi(live: LiveService) -> Any:
    """The document of a service that has one of most things, so that small ids exist."""
    http = Http(live)
    campaign = Campaign(http)
    campaign.create(5)
    http.ok("POST", "/batch-jobs", {"site_id": campaign.site, "num_nodes": 1, "wall_time_min": 1})
    http.ok("POST", "/sessions", {"site_id": campaign.site, "ttl_sec": 3600})
    return schemathesis.openapi.from_url(f"{live.url}/openapi.json", headers=_bearer(live))


#: What uvicorn says of what is no HTTP at all; no route sees it.
NO_HTTP = "Invalid HTTP request received."


def _bearer(live: LiveService) -> dict[str, str]:
    return {"Authorization": f"Bearer {live.token}"}


@pytest.mark.timeout(TIMEOUT)
def test_any_request_is_no_failure(openapi: Any, live: LiveService) -> None:
    operations = [found.ok() for found in openapi.get_all_operations()]
    assert len(operations) > 40
    for operation in operations:
        bombard(operation, live)


def bombard(operation: Any, live: LiveService) -> None:
    """Call one operation with what its description allows, and with what it does not."""

    @given(case=st.one_of(operation.as_strategy(), operation.as_strategy(GenerationMode.NEGATIVE)))
    @settings(
        max_examples=10 * EFFORT,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        phases=[Phase.generate],
    )
    def call(case: Any) -> None:
        for part in (case.query, case.body):  # a long poll is not what is tested here
            if isinstance(part, dict) and ("timeout" in part or operation.path.endswith("/read")):
                part["timeout"] = 0
        answer = case.call(headers=_bearer(live))
        unreachable = answer.status_code == 504 and answer.json()["error"] == SiteUnreachable.code
        assert answer.status_code < 500 or unreachable, (answer.status_code, answer.text)
        if answer.status_code >= 400 and answer.text != NO_HTTP:
            assert set(answer.json()) == {"error", "message", "detail"}, answer.text

    call()
