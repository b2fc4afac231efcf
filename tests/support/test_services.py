"""The live service: reachable, restartable, and told apart from one that cannot start; the same when it is forked."""

from __future__ import annotations

import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from balsam_exec.model.sites import SiteSpec
from tests.support.services import LiveService
from tests.support.warm import Template


@pytest.fixture(params=["forked", "started"])
def how(request: pytest.FixtureRequest) -> Template | None:
    """How services are started."""
    template: Template | None = request.getfixturevalue("template") if request.param == "forked" else None
    return template


def test_a_live_service_keeps_its_address_and_data_over_a_restart(
    how: Template | None, database_url: str, tmp_path: Path
) -> None:
    with LiveService(database_url, tmp_path, template=how) as live:
        created = live.service.create_site(SiteSpec(name="here"))
        before = live.pid, live.url
        live.restart()
        assert live.pid != before[0]
        assert live.url == before[1]
        assert [site.id for site in live.service.sites().results] == [created.id]


def test_a_service_that_cannot_start_says_why(how: Template | None, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="unable to open database file"):
        LiveService("sqlite:////nowhere/balsam.db", tmp_path, template=how)


#: timeit runs any code.
SAY = "import os, sys; print(os.getcwd(), os.environ['WORD'], sys.stdin.read(), flush=True); os.write(3, b'3'); {end}"


@pytest.mark.parametrize(("end", "code"), [("1 / 0", 1), ("os.kill(os.getpid(), 9)", -9), ("os.isatty(0)", 0)])
def test_what_is_forked_is_a_process_like_any_other(
    template: Template, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORD", "of this test")
    with (tmp_path / "output").open("wb") as output, (tmp_path / "third").open("wb") as third:
        process = template.start("timeit", ["-n1", "-r1", SAY.format(end=end)], output, third.fileno())
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0)
    process.stdin.write(b"what it reads")
    process.stdin.close()
    assert process.wait(20) == process.poll() == code
    assert (tmp_path / "output").read_text().startswith(f"{tmp_path} of this test what it reads\n")
    assert (tmp_path / "third").read_bytes() == b"3"


def test_what_is_forked_can_be_killed_and_outlives_its_template(tmp_path: Path) -> None:
    with closing(Template()) as template, (tmp_path / "output").open("wb") as output:
        process = template.start("timeit", ["-n1", "-r1", "input()"], output)
    assert process.poll() is None
    process.kill()
    assert process.wait(20) == -9
    process.kill()
    process.stdin.close()
