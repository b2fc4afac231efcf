"""When an allocation is taken away, as its launcher reckons or its scheduler says."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from balsam_exec.launcher import wall_time
from balsam_exec.launcher.wall_time import end_of_allocation
from balsam_exec.model.base import now
from balsam_exec.platform.settings import SiteDirectory, SiteSettings
from tests.launcher.test_crews import batch_job

SLURM = SiteSettings(name="site", scheduler="slurm")


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have Slurm's squeue do this."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def make(script: str) -> None:
        (tmp_path / "squeue").write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / "squeue").chmod(0o755)

    return make


def left(site: Path, settings: SiteSettings, scheduler_id: str | None, **fields: object) -> float:
    """The minutes that are left, rounded."""
    at = end_of_allocation(batch_job(wall_time_min=60, **fields), SiteDirectory(site), settings, scheduler_id)
    return round((at - time.time()) / 60)


def test_what_was_asked_for_since_it_was_seen_to_start(tmp_path: Path) -> None:
    local = SiteSettings(name="site")
    assert left(tmp_path, local, "7") == 60
    assert left(tmp_path, local, None, start_time=now() - timedelta(minutes=20)) == 40
    assert left(tmp_path, SLURM, None, start_time=now() - timedelta(minutes=20)) == 40


def test_the_scheduler_knows_better(tmp_path: Path, squeue: Callable[[str], None]) -> None:
    squeue("echo '7|RUNNING|0|None|12:00|mine|'")
    assert left(tmp_path, SLURM, "7") == 12


@pytest.mark.parametrize(
    "script", ["echo 'Unable to contact slurm controller' >&2; exit 1", "echo '7|RUNNING|0|None|UNLIMITED|mine|'"]
)
def test_a_scheduler_that_does_not_know(tmp_path: Path, squeue: Callable[[str], None], script: str) -> None:
    squeue(script)
    assert left(tmp_path, SLURM, "7", start_time=now() - timedelta(minutes=20)) == 40


def test_a_scheduler_that_does_not_answer(
    tmp_path: Path, squeue: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wall_time, "_PATIENCE", 0.2)
    squeue("sleep 3; echo '7|RUNNING|0|None|12:00|mine|'")
    assert left(tmp_path, SLURM, "7") == 60
