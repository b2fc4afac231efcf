"""A deployment for the tests of a module, as `balsam up` makes it; each test finds it configured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from balsam_exec.embedded import Deployment


@pytest.fixture(scope="module")
def module_deployment(tmp_path_factory: pytest.TempPathFactory, nothing_left_running: None) -> Iterator[Deployment]:
    with Deployment.start(tmp_path_factory.mktemp("home")) as deployment:
        yield deployment


@pytest.fixture
def deployment(module_deployment: Deployment, balsam_home: Path, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    """A configured service with a local site, shared by the tests of the module."""
    monkeypatch.setenv("BALSAM_HOME", str(module_deployment.home))
    return module_deployment
