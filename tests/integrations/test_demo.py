"""`make demo`'s program, at a small size: it runs, says where things lie, and leaves nothing running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

CAMPAIGN = Path(__file__).parents[2] / "integrations" / "demo" / "campaign.py"


def start(directory: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(CAMPAIGN), "--small", "--directory", str(directory)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def of_deployment(home: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        words = [*(process.info["cmdline"] or []), (process.info["environ"] or {}).get("BALSAM_HOME", "")]
        if any(word.startswith(str(home)) for word in words):
            found.append(process)
    return found


def test_the_campaign_runs_and_ends(tmp_path: Path) -> None:
    home = tmp_path / "run"
    campaign = start(home)
    out, err = campaign.communicate(timeout=100)
    assert campaign.returncode == 0, err
    assert "4 │  -6.000 │     -6.000" in out
    assert "r=2.80" in out
    assert "4.189" in out
    assert "15 jobs: 15 JOB_FINISHED" in out
    assert (home / "site" / "data" / "logistic" / "r2.80" / "job.out").read_text().startswith("r=2.80 0.6428")
    assert of_deployment(home) == []


@pytest.mark.parametrize("line", ["", "Service"], ids=["while it starts", "while it runs"])
def test_ctrl_c_leaves_nothing_running(tmp_path: Path, line: str) -> None:
    home = tmp_path / "run"
    campaign = start(home)
    assert campaign.stdout is not None
    if line:
        assert line in campaign.stdout.readline()
    else:
        wait_for_any(home, campaign)
    campaign.send_signal(signal.SIGINT)
    _, err = campaign.communicate(timeout=60)
    assert campaign.returncode == 130, err
    gone, alive = psutil.wait_procs(of_deployment(home), timeout=20)
    assert alive == [], gone


def wait_for_any(home: Path, campaign: subprocess.Popen[str]) -> None:
    """Until the first process of the deployment is there: its state directory appears just before."""
    give_up = time.monotonic() + 30
    while not home.exists():
        assert campaign.poll() is None
        assert time.monotonic() < give_up
        os.sched_yield()
