"""Requests that go past FastAPI: what takes that way, and that it answers as the usual one does."""

from __future__ import annotations

from typing import Any

import pytest

from balsam_exec.server.routes import express


def scope(method: str, path: str, **headers: str) -> dict[str, Any]:
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": method, "path": path, "headers": named}


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/jobs"), ("GET", "/events/feed"), ("POST", "/sessions/7/acquire"), ("POST", "/sessions/7/report")],
)
def test_what_every_job_passes_through_has_a_lane(method: str, path: str) -> None:
    assert express.find(scope(method, path)) is not None


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/jobs"),
        ("POST", "/jobs/"),
        ("POST", "/events/feed"),
        ("GET", "/sessions/7/acquire"),
        ("POST", "/sessions/0/acquire"),
        ("POST", "/sessions/9999999999999999999/report"),
        ("POST", "/sessions/7/acquire/"),
        ("POST", "/sessions/7/kill"),
    ],
)
def test_the_rest_goes_the_usual_way(method: str, path: str) -> None:
    assert express.find(scope(method, path)) is None


@pytest.mark.parametrize("key", ["", "k" * 201])
def test_a_key_that_cannot_be_one_is_refused_on_the_usual_way(key: str) -> None:
    assert express.find(scope("POST", "/jobs", idempotency_key=key)) is None
    assert express.find(scope("POST", "/jobs", idempotency_key="k" * 200)) is not None


def test_a_websocket_is_not_ours() -> None:
    assert express.find({"type": "lifespan"}) is None
