"""`balsam site`, and which sites `--site` means."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from balsam_exec.cli.selection import pick
from balsam_exec.model.apps import AppRecord
from balsam_exec.model.base import now
from balsam_exec.model.batch_jobs import BatchJobPatch, BatchJobSpec
from balsam_exec.model.errors import DoesNotExist
from balsam_exec.model.sites import SitePatch, SiteRecord, SiteSpec
from balsam_exec.model.states import BatchJobState
from balsam_exec.platform.settings import SiteDirectory
from balsam_exec.site.identity import this_process
from balsam_exec.site.lease import Lease, recorded_agent
from tests.cli.conftest import Balsam, execute
from tests.cli.test_jobs import create
from tests.support.processes import wait_until

# --- making one


def test_site_init_and_ls(balsam: Balsam, tmp_path: Path) -> None:
    path = tmp_path / "theta-gpu"
    told = balsam("site", "init", path, "--name", "theta-gpu")
    (row,) = balsam.rows("site", "ls")
    assert row["NAME"] == "theta-gpu"
    assert row["PATH"] == str(path)
    assert f"id {row['ID']}" in told
    assert f"balsam site start '{tmp_path}/a site'" in balsam("site", "init", tmp_path / "a site", "--name", "odd")
    balsam("site", "rm", "odd", "--yes")
    (tmp_path / "file").touch()
    assert f"cannot make a site of {tmp_path}/file" in balsam.fails("site", "init", tmp_path / "file")
    assert {entry.name for entry in path.iterdir()} == {"settings.yml", "job-template.sh", "data", "log", "qsubmit"}
    settings = SiteDirectory(path).settings()
    assert settings.name == "theta-gpu"
    assert str(settings.site_id) == row["ID"]
    assert "is a site already" in balsam.fails("site", "init", path, "--name", "other")
    assert "choose another" in balsam.fails("site", "init", tmp_path / "other", "--name", "theta-gpu")
    assert not (tmp_path / "other").exists()
    assert [site["name"] for site in balsam.json("site", "ls")] == ["theta-gpu"]


def test_a_platform(balsam: Balsam, tmp_path: Path) -> None:
    site = balsam.json("site", "init", tmp_path / "polaris", "--platform", "polaris")
    assert site["name"] == "polaris", "by default the directory's"
    assert site["allowed_queues"]["debug"]["max_nodes"] == 2
    assert SiteDirectory(tmp_path / "polaris").settings().scheduler == "pbs"
    assert "there are: " in balsam.fails("site", "init", tmp_path / "x", "--platform", "x")
    assert not (tmp_path / "x").exists()
    listed = {row["PLATFORM"]: row["IS"] for row in balsam.rows("site", "init", "--list-platforms")}
    assert listed["frontier"] == "Frontier (OLCF)"


# --- its agent


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("name: x\ncoers: 4\n", "there is no setting 'coers' (there are: name, site_id,"),
        ("name: x\ncores: many\n", "cores: "),
        ("name: x\nscheduler: cobalt\n", "scheduler: "),
        ("- x\n", "holds no settings"),
        ("name: [x\n", "is not YAML"),
        ("cores: 4\n", "name: "),
        ("name: x\n", "balsam site init"),
    ],
)
def test_site_start_with_wrong_settings(balsam: Balsam, tmp_path: Path, settings: str, message: str) -> None:
    (tmp_path / "settings.yml").write_text(settings)
    result = execute("site", "start", str(tmp_path), home=tmp_path)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_site_start_where_there_is_none(balsam: Balsam, tmp_path: Path) -> None:
    assert "is not a site" in balsam.fails("site", "start", tmp_path)


def test_in_the_foreground(balsam: Balsam, tmp_path: Path) -> None:
    path = tmp_path / "site"
    balsam("site", "init", path, "--name", "mine")
    (site,) = balsam.service.sites().results
    balsam.service.patch_site(site.id, SitePatch(name="renamed"))
    command = [sys.executable, "-m", "balsam_exec.cli", "site", "start", "--foreground", str(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as agent:
        try:
            wait_until(lambda: balsam.service.site(site.id).last_refresh is not None, 30, "the agent to be heard of")
            wait_until(lambda: "serving site renamed" in agent.stderr.readline(), 10, "its word")  # type: ignore[union-attr]
        finally:
            agent.send_signal(signal.SIGINT)
        rest = agent.communicate(timeout=20)[1]
        assert agent.returncode == 0, rest


@pytest.fixture
def mine(balsam: Balsam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A site, and no agent is left of it."""
    path = tmp_path / "mine"
    balsam("site", "init", path)
    yield path
    if path.exists():
        balsam("site", "stop", path)


def test_in_the_background(balsam: Balsam, mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = balsam.service.sites(name="mine").results[0]
    assert balsam.run("site", "status")[0] == 1
    assert f"pid {(started := balsam.json('site', 'start', mine))['pid']}" in balsam.fails_at_length(
        "site", "start", mine
    ), "who serves it already"
    code, _, _ = balsam.run("site", "status", "--site", "mine")
    assert code == 0
    parts = {row["PART"]: row["STATE"] for row in balsam.rows("site", "status")}
    assert parts["agent"] == "active"
    assert parts.keys() >= {"allocations", "files", "processing", "heartbeat", "settings"}
    [record] = balsam.json("site", "status")
    assert SiteRecord.model_validate(record).agent == balsam.service.site(site.id).agent
    assert record["agent"]["pid"] == started["pid"]
    (row,) = balsam.rows("site", "ls", "--site", "active")
    assert (row["AGENT"], row["AGENT'S HOST"]) == ("active", socket.gethostname())

    monkeypatch.chdir(mine / "data")
    settings = mine / "settings.yml"
    settings.write_text(settings.read_text().replace("allowed_projects: []", "allowed_projects: [climate]"))
    assert f"(pid {started['pid']}" in balsam("site", "sync")
    assert balsam.service.site(site.id).allowed_projects == ["climate"]
    log = mine / "log" / "agent.log"
    wait_until(lambda: "took over settings.yml: allocations" in log.read_text(), 20, "the agent to take them over")

    monkeypatch.chdir(mine.parent)
    assert "stop it first" in balsam.fails("site", "mv", mine, "other")
    assert "stop it first" in balsam.fails("site", "rm", mine, "--yes")
    assert "allocations, if any, go on" in balsam("site", "stop", mine)
    assert balsam.json("site", "stop", mine) == {"stopped": False}
    assert balsam.service.site(site.id).agent is None


def test_an_agent_that_does_not_serve_says_why(balsam: Balsam, mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SiteDirectory(mine).record_id(4711)
    assert "there is no site 4711" in balsam.fails_at_length("site", "start", mine)
    monkeypatch.setenv("BALSAM_URL", "http://127.0.0.1:9")
    said = balsam.fails_at_length("site", "start", mine, "--timeout", "0.1")
    assert "does not serve the site yet, and goes on trying" in said
    wait_until(lambda: recorded_agent(SiteDirectory(mine)) is not None, 30, "it to have begun")
    assert "stopped" in balsam("site", "stop", mine, "--drain")


# --- moving, renaming, removing


def test_mv_and_rename(balsam: Balsam, mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "taken").mkdir()
    assert "exists already" in balsam.fails("site", "mv", mine, tmp_path / "taken")
    target = tmp_path / "new"
    [site] = balsam.service.sites().results
    allocation = balsam.service.create_batch_job(BatchJobSpec(site_id=site.id, num_nodes=1, wall_time_min=5))
    assert f"have not ended, {allocation.id}" in balsam.fails("site", "mv", mine, target)
    balsam.service.patch_batch_job(allocation.id, BatchJobPatch(state=BatchJobState.FINISHED))
    assert balsam.json("site", "mv", mine, target)["path"] == str(target)
    assert not mine.exists()
    monkeypatch.chdir(target)
    balsam("site", "rename", "yours: really", "--site", "this")
    assert SiteDirectory(target).settings().name == balsam.service.site(site.id).name == "yours: really"
    other = balsam.service.create_site(SiteSpec(name="other", hostname="login9"))
    assert "login9, is yet to say so too" in balsam("site", "rename", "another", "--site", other.id)
    assert "have a site 'another' already" in balsam.fails("site", "rename", "another")


def test_rm(balsam: Balsam, mine: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    balsam("site", "init", kept)
    assert "--yes" in balsam.fails("site", "rm", mine, code=2)
    assert "no site named" in balsam.fails("site", "rm", "no-such", "--yes")
    assert "its files stay" in balsam("site", "rm", "kept", "--keep-files", "--yes")
    assert kept.exists()
    [site] = balsam.service.sites().results
    balsam.service.create_batch_job(BatchJobSpec(site_id=site.id, num_nodes=1, wall_time_min=5))
    assert "have not ended" in balsam.fails("site", "rm", mine, "--yes")
    assert mine.exists()
    assert balsam.json("site", "rm", mine, "--yes", "--force") == {"count": 1}
    assert not mine.exists()
    assert balsam.service.sites().results == []


def test_rm_with_jobs_of_a_site_elsewhere(balsam: Balsam, hello: AppRecord) -> None:
    create(balsam, "w")
    assert "files on thetalogin6 stay" in balsam("site", "rm", "theta", "--yes")
    assert balsam.service.sites().results == []


# --- which sites


def record(site_id: int, name: str, *, active: bool = False) -> SiteRecord:
    return SiteRecord(id=site_id, name=name, created=now(), active=active)


SITES = [record(1, "theta"), record(2, "polaris", active=True), record(3, "2"), record(4, "a,b", active=True)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("theta", [1]),
        ("1", [1]),
        ("2", [3]),  # a name before an id
        ("all", [1, 2, 3, 4]),
        ("active", [2, 4]),
        ("this", [1]),
        ("a,b", [4]),
        ("theta, 4 ,theta", [1, 4]),
        ("active,this", [2, 4, 1]),
    ],
)
def test_selectors(text: str, found: list[int]) -> None:
    assert [site.id for site in pick(text, SITES, lambda: 1)] == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("none", "no site named 'none'; you have: theta, polaris, 2, a,b"),
        ("9", "there is no site 9; you have"),
        ("theta,", "no site named ''"),
        ("this", "there is no site 5"),
    ],
)
def test_selectors_of_nothing(text: str, message: str) -> None:
    with pytest.raises(DoesNotExist, match=message):
        pick(text, SITES, lambda: 5)
    with pytest.raises(DoesNotExist, match="heard of lately"):
        pick("active", SITES[:1], lambda: 1)


def test_selectors_everywhere(
    balsam: Balsam, hello: AppRecord, mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = create(balsam, "w")
    allocation = balsam.json("queue", "submit", "--site", "theta")
    assert [app["name"] for app in balsam.json("app", "ls", "--site", "theta,mine")] == ["Hello"]
    assert balsam.json("app", "ls", "--site", "mine") == []
    assert [found["id"] for found in balsam.json("job", "ls", "--site", "all")] == [job]
    assert balsam.json("job", "ls", "--site", "mine") == []
    assert [found["id"] for found in balsam.json("queue", "ls", "-s", "mine,theta")] == [allocation["id"]]
    assert "no agent of a site was heard of lately" in balsam.fails("job", "rm", "--site", "active", "--yes")
    Lease(this_process()).take(balsam.service, hello.site_id)
    assert [found["id"] for found in balsam.json("job", "ls", "--site", "active")] == [job]
    assert "one site, please" in balsam.fails("queue", "submit", "--site", "all")

    assert "not in a site, and BALSAM_SITE is not set" in balsam.fails("job", "ls", "--site", "this")
    monkeypatch.setenv("BALSAM_SITE", "theta")
    assert [found["id"] for found in balsam.json("job", "ls", "--site", "this")] == [job]
    monkeypatch.chdir(mine / "log")
    assert balsam.json("job", "ls", "--site", "this") == []
    assert balsam.json("queue", "submit", "--site", "this")["site_id"] != hello.site_id
