"""The command line on a real service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from balsam_exec.cli.app import app
from balsam_exec.client.service import Service
from balsam_exec.model.apps import AppRecord, AppSpec, ParameterSpec
from balsam_exec.model.sites import SiteRecord, SiteSpec
from tests.support.services import LiveService


class Balsam:
    """Runs `balsam ...` in this process, as in a pipe."""

    def __init__(self, live: LiveService) -> None:
        self.live = live
        self.service: Service = live.service
        self._runner = CliRunner()

    def run(self, *arguments: object, stdin: str = "") -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        result = self._runner.invoke(app, [str(a) for a in arguments], input=stdin, catch_exceptions=False)
        return result.exit_code, result.stdout, result.stderr

    def __call__(self, *arguments: object, stdin: str = "") -> str:
        """The output of a command that succeeds."""
        code, out, err = self.run(*arguments, stdin=stdin)
        assert code == 0, err
        return out

    def rows(self, *arguments: object) -> list[dict[str, str]]:
        """The table that a command prints."""
        header, *lines = self(*arguments).splitlines()
        return [dict(zip(header.split("\t"), line.split("\t"), strict=True)) for line in lines]

    def json(self, *arguments: object) -> Any:
        return json.loads(self(*arguments, "--json"))

    def fails_at_length(self, *arguments: object) -> str:
        """What a command says that fails with more than a line."""
        code, out, err = self.run(*arguments)
        assert code == 1, (out, err)
        assert err.startswith("balsam: ")
        return err

    def fails(self, *arguments: object, code: int = 1, stdin: str = "") -> str:
        """The one line that a command fails with."""
        found, out, err = self.run(*arguments, stdin=stdin)
        assert found == code, (out, err)
        assert "Traceback" not in err
        if code == 1:
            assert err.count("\n") == 1
            assert err.startswith("balsam: ")
        return err


@pytest.fixture
def balsam(
    start_service: Callable[[str], LiveService], sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Balsam]:
    live = start_service(sqlite_url)
    monkeypatch.setenv("BALSAM_URL", live.url)
    monkeypatch.setenv("BALSAM_TOKEN", live.token)
    return Balsam(live)


@pytest.fixture
def site(balsam: Balsam) -> SiteRecord:
    return balsam.service.create_site(SiteSpec(name="theta", path="/projects/theta", hostname="thetalogin6"))


@pytest.fixture
def hello(balsam: Balsam, site: SiteRecord) -> AppRecord:
    parameters = {"name": ParameterSpec(), "greeting": ParameterSpec(required=False, default="hello")}
    spec = AppSpec(
        site_id=site.id, name="Hello", command_template="echo {{ greeting }} {{ name }}", parameters=parameters
    )
    return balsam.service.put_app(spec)


def execute(*arguments: str, home: Path, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    """`balsam ...` as a process."""
    return subprocess.run(
        [sys.executable, "-m", "balsam_exec.cli", *arguments],
        env={**os.environ, "BALSAM_HOME": str(home), **environ},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
