"""`balsam queue`, `token`, `login`, `server`, and the command as a whole."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from balsam_exec import __version__
from balsam_exec.client.config import load_credentials
from balsam_exec.client.service import Service
from balsam_exec.model.batch_jobs import BatchJobPatch
from balsam_exec.model.errors import NotAuthenticated
from balsam_exec.model.sites import SiteRecord
from balsam_exec.model.states import BatchJobState
from tests.cli.conftest import Balsam, execute

# --- queue


def test_queue_submit(balsam: Balsam, site: SiteRecord) -> None:
    made = balsam(
        "queue", "submit", "-n", 4, "-t", 30, "-q", "debug", "-A", "datascience", "-j", "serial", "--site", "theta",
        "--tag", "kind=md", "--idle", 5,
    )  # fmt: skip
    job = balsam.service.batch_job(int(made))
    assert (job.site_id, job.num_nodes, job.wall_time_min) == (site.id, 4, 30)
    assert (job.queue, job.project, job.job_mode) == ("debug", "datascience", "serial")
    assert job.filter_tags == {"kind": "md"}
    assert job.idle_ttl_sec == 5


def test_queue_submit_to_the_only_site(balsam: Balsam, site: SiteRecord) -> None:
    assert balsam.service.batch_job(int(balsam("queue", "submit"))).site_id == site.id


def test_queue_submit_refuses(balsam: Balsam, site: SiteRecord) -> None:
    balsam.fails("queue", "submit", "-n", 0, code=2)
    balsam.fails("queue", "submit", "-j", "other", code=2)
    balsam.fails("queue", "submit", "--tag", "kind", code=2)
    assert "no site named 'x'" in balsam.fails("queue", "submit", "--site", "x")
    assert balsam.rows("queue", "ls") == []


def test_queue_ls_and_rm(balsam: Balsam, site: SiteRecord) -> None:
    first, second = int(balsam("queue", "submit")), int(balsam("queue", "submit", "-n", 2))
    rows = balsam.rows("queue", "ls")
    assert [(int(row["ID"]), row["STATE"], row["SITE"]) for row in rows] == [
        (first, "pending_submission", "theta"),
        (second, "pending_submission", "theta"),
    ]
    balsam("queue", "rm", first)
    assert balsam.service.batch_job(first).state is BatchJobState.PENDING_DELETION
    info = {"info": "exit code 0"}
    balsam.service.patch_batch_job(first, BatchJobPatch(state=BatchJobState.FINISHED, status_info=info))
    assert [int(row["ID"]) for row in balsam.rows("queue", "ls")] == [second]
    everything = balsam.rows("queue", "ls", "--all", "--site", "theta")
    assert [(int(row["ID"]), row["INFO"]) for row in everything] == [(first, "exit code 0"), (second, "")]
    assert balsam.json("queue", "ls")[0]["id"] == second
    assert "99" in balsam.fails("queue", "rm", 99)


# --- token and login


def test_tokens(balsam: Balsam) -> None:
    text = balsam("token", "create", "laptop", "--days", 3).strip()
    assert Service(balsam.live.url, text).me().username == "local"
    rows = {row["NAME"]: row for row in balsam.rows("token", "ls")}
    assert rows["laptop"]["EXPIRES"]
    assert text not in balsam("token", "ls") + balsam("token", "ls", "--json")
    balsam("token", "revoke", rows["laptop"]["ID"])
    with pytest.raises(NotAuthenticated):
        Service(balsam.live.url, text).me()
    assert "99" in balsam.fails("token", "revoke", 99)


def test_login_with_a_password(balsam: Balsam, balsam_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BALSAM_URL")
    monkeypatch.delenv("BALSAM_TOKEN")
    assert "balsam up" in balsam.fails("job", "ls"), "nothing is configured yet"
    balsam("server", "create-user", "ada", "--database", balsam.live.database, stdin="countess\n")
    assert "wrong password" in balsam.fails("login", balsam.live.url, "-u", "ada", stdin="Countess\n")
    assert not (balsam_home / "credentials.json").exists()
    assert "as ada" in balsam("login", balsam.live.url, "--username", "ada", stdin="countess\n")
    assert (balsam_home / "credentials.json").stat().st_mode & 0o777 == 0o600
    assert "countess" not in (balsam_home / "credentials.json").read_text()
    assert balsam.rows("job", "ls") == []


def test_login_with_a_token(balsam: Balsam, monkeypatch: pytest.MonkeyPatch) -> None:
    token = os.environ["BALSAM_TOKEN"]
    monkeypatch.delenv("BALSAM_URL")
    monkeypatch.delenv("BALSAM_TOKEN")
    balsam.fails("login", balsam.live.url, "--with-token", stdin="wrong\n")
    balsam("login", balsam.live.url, "--with-token", "--site", "theta", stdin=f"{token}\n")
    found = load_credentials()
    assert (found.url, found.token.get_secret_value(), found.site) == (balsam.live.url, token, "theta")


@pytest.mark.parametrize("url", ["not-a-url", "ftp://host", "http://user:password@host"])
def test_login_refuses(balsam: Balsam, url: str) -> None:
    assert "password" not in balsam.fails("login", url, "-u", "ada", stdin="x\n").replace("password: use", "")


# --- server


def test_create_user_refuses(balsam: Balsam) -> None:
    database = ["--database", balsam.live.database]
    balsam("server", "create-user", "ada", *database, stdin="one\n")
    assert "already" in balsam.fails("server", "create-user", "ada", *database, stdin="two\n")
    assert "empty" in balsam.fails("server", "create-user", "grace", *database, stdin="\n")
    balsam.fails("server", "create-user", "gr ace", *database, stdin="x\n", code=2)


def test_server_run(balsam_home: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "balsam_exec.cli", "server", "run", "--port", str(port)]
    with subprocess.Popen([*command, "--database", f"sqlite:///{tmp_path / 'b.db'}"]) as server:
        try:
            service = Service(f"http://127.0.0.1:{port}")
            assert service.health(deadline=30).version == __version__
            service.close()
        finally:
            server.send_signal(signal.SIGINT)
        assert server.wait(20) == 0


def test_server_run_on_a_database_that_is_not(tmp_path: Path) -> None:
    result = execute("server", "run", "--database", "sqlite:////no/such/place/b.db", "--port", "0", home=tmp_path)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("balsam: cannot use the database sqlite:////no/such/place/b.db: ")
    assert "Traceback" not in result.stderr


def test_server_run_on_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = execute("server", "run", "--database", f"sqlite:///{tmp_path / 'b.db'}", "--port", port, home=tmp_path)
    assert result.returncode == 1
    assert "cannot listen" in result.stderr
    assert "Traceback" not in result.stderr


# --- up, down, status


def test_up_status_down(balsam_home: Path) -> None:
    before = execute("status", "--json", home=balsam_home)
    assert before.returncode == 1
    assert json.loads(before.stdout)["healthy"] is False
    up = execute("up", home=balsam_home)
    try:
        assert up.returncode == 0, up.stderr
        assert up.stdout.startswith("up: http://127.0.0.1:")
        assert execute("up", home=balsam_home).stdout.startswith("already up: ")
        told = json.loads(execute("up", "--json", home=balsam_home).stdout)
        assert told == {"url": told["url"], "site": "local", "home": str(balsam_home), "started": False}
        status = execute("status", home=balsam_home)
        assert status.returncode == 0, status.stdout
        lines = [line.split("\t") for line in status.stdout.splitlines()]
        assert [line[:2] for line in lines[1:4]] == [["supervisor", "ok"], ["service", "ok"], ["agent", "ok"]]
        told = json.loads(execute("status", "--json", home=balsam_home).stdout)
        assert told["healthy"] is True
        assert [part["name"] for part in told["parts"]] == ["supervisor", "service", "agent"]
        assert execute("site", "ls", home=balsam_home).returncode == 0
    finally:
        down = execute("down", home=balsam_home)
    assert (down.returncode, down.stdout) == (0, "down\n")
    after = execute("status", home=balsam_home)
    assert after.returncode == 1
    assert "balsam up" in after.stdout
    again = execute("down", home=balsam_home)
    assert (again.returncode, again.stdout) == (0, "it was not up\n")
    assert json.loads(execute("down", "--json", home=balsam_home).stdout) == {"stopped": False}


def test_up_says_what_it_takes_the_place_of(balsam: Balsam, balsam_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = os.environ["BALSAM_TOKEN"]
    monkeypatch.delenv("BALSAM_URL")
    monkeypatch.delenv("BALSAM_TOKEN")
    balsam("login", balsam.live.url, "--with-token", stdin=f"{token}\n")
    up = execute("up", home=balsam_home)
    execute("down", home=balsam_home)
    assert up.returncode == 0
    assert f"balsam login {balsam.live.url}" in up.stderr


def test_up_that_fails_says_why(balsam_home: Path) -> None:
    result = execute("up", "--database", "sqlite:////no/such/place/b.db", home=balsam_home)
    assert result.returncode == 1
    assert "the service ended" in result.stderr
    assert "unable to open" in result.stderr


# --- the command as a whole


def test_version(tmp_path: Path) -> None:
    assert execute("--version", home=tmp_path).stdout == f"balsam {__version__}\n"


def test_help_is_quick_and_imports_little(tmp_path: Path) -> None:
    started = time.monotonic()
    result = execute("--help", home=tmp_path)
    assert result.returncode == 0
    assert time.monotonic() - started < 3  # 0.13 s where nothing else runs
    for command in ("up", "down", "status", "login", "job", "app", "queue", "site", "token", "server"):
        assert f"\n  {command} " in result.stdout
    script = "import sys, balsam_exec.cli.app; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert not set(loaded.stdout.split()) & {"pydantic", "urllib3", "fastapi", "sqlalchemy", "yaml", "rich.console"}


def test_nothing_configured(tmp_path: Path) -> None:
    result = execute("job", "ls", home=tmp_path / "nothing")
    assert result.returncode == 1
    assert result.stderr.startswith("balsam: no service is configured")
    assert result.stderr.count("\n") == 1


def test_a_service_that_is_away(tmp_path: Path) -> None:
    environ = {"BALSAM_URL": "http://127.0.0.1:9", "BALSAM_TOKEN": "x"}
    result = execute("status", home=tmp_path, **environ)
    assert result.returncode == 1
    assert "service\tdown" in result.stdout


def test_a_reader_that_has_seen_enough(balsam: Balsam) -> None:
    command = f"{sys.executable} -m balsam_exec.cli job ls | head -n 0; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=30, check=False)
    assert "Traceback" not in result.stderr
