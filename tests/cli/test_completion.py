"""What the shell completes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from balsam_exec.cli import completion
from balsam_exec.model.apps import AppRecord
from tests.cli.conftest import Balsam


def complete(typed: str) -> list[str]:
    """What bash is offered after these words."""
    environ = {
        **os.environ,
        "_BALSAM_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(typed.count(" ")),
    }
    script = "from balsam_exec.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", script], env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.stderr == ""
    return result.stdout.split()


def test_names_of_apps_and_sites(balsam: Balsam, hello: AppRecord) -> None:
    assert complete("balsam job create --app ") == ["Hello"]
    assert complete("balsam app show H") == ["Hello"]
    assert complete("balsam job ls --site ") == ["active", "all", "theta", "this"]
    assert complete("balsam job ls --site all,the") == ["all,theta"]
    assert complete("balsam queue submit --site th") == ["theta", "this"]


def test_what_needs_no_service(tmp_path: Path) -> None:
    assert complete("balsam job mo") == ["modify"]
    assert complete("balsam site init --platform po") == ["polaris"]
    assert complete("balsam job ls --state JOB") == ["JOB_FINISHED"]
    assert complete("balsam job modify --set num_n") == ["num_nodes="]


@pytest.mark.parametrize("url", [None, "http://127.0.0.1:9"])
def test_without_a_service_it_is_silent(url: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if url:
        monkeypatch.setenv("BALSAM_URL", url)
        monkeypatch.setenv("BALSAM_TOKEN", "x")
        monkeypatch.setattr(completion, "_PATIENCE", 0.1)
    assert completion.apps("") == []
    assert completion.sites("") == ["active", "all", "this"]
