"""`balsam job logs`."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from balsam_exec.cli import logs
from balsam_exec.model.apps import AppRecord, AppSpec
from balsam_exec.model.base import now
from balsam_exec.model.files import MAX_CHUNK
from balsam_exec.model.jobs import JobSpec, Result
from balsam_exec.model.sessions import AcquireRequest, Report, SessionSpec
from balsam_exec.model.sites import SiteSpec
from balsam_exec.model.states import JobState
from balsam_exec.site.files import Files
from tests.cli.conftest import Balsam
from tests.support.processes import wait_until


@pytest.fixture
def echo(balsam: Balsam, tmp_path: Path) -> AppRecord:
    """An app of a site on this machine."""
    (tmp_path / "site/data/w").mkdir(parents=True)
    spec = SiteSpec(name="here", path=str(tmp_path / "site"), hostname=socket.gethostname())
    site = balsam.service.create_site(spec)
    return balsam.service.put_app(AppSpec(site_id=site.id, name="Echo", command_template="echo"))


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    return tmp_path / "site/data/w"


def new_job(balsam: Balsam, app: AppRecord, **fields: str) -> int:
    return balsam.service.create_jobs([JobSpec(app_id=app.id, workdir="w", **fields)])[0].id


def test_what_a_job_printed(balsam: Balsam, echo: AppRecord, workdir: Path) -> None:
    job = new_job(balsam, echo)
    assert "there is no file job.out (yet)" in balsam.fails("job", "logs", job)
    (workdir / "job.out").write_text("one\ntwo\n")
    assert balsam("job", "logs", job) == "one\ntwo\n"


def test_large_outputs_come_in_parts(balsam: Balsam, echo: AppRecord, workdir: Path) -> None:
    job = new_job(balsam, echo)
    text = "0123456789abcde\n" * (MAX_CHUNK // 16 + 1000)
    (workdir / "job.out").write_text(text)
    assert balsam("job", "logs", job) == text


def test_other_files(balsam: Balsam, echo: AppRecord, workdir: Path) -> None:
    for name in ("o", "e", "x"):
        (workdir / name).write_text(f"this is {name}\n")
    job = int(balsam("job", "create", "--app", "Echo", "-w", "w", "--stdout", "o", "--stderr", "e"))
    assert balsam("job", "logs", job) == "this is o\n"
    assert balsam("job", "logs", job, "--stderr") == "this is e\n"
    assert balsam("job", "logs", job, "--file", "x") == "this is x\n"
    assert "relative to the job's workdir" in balsam.fails("job", "logs", job, "--file", "../y")
    assert "not both" in balsam.fails("job", "logs", job, "--file", "x", "--stderr", code=2)
    together = new_job(balsam, echo)
    assert "goes together with its stdout" in balsam.fails("job", "logs", together, "--stderr")
    assert "no job 4711" in balsam.fails("job", "logs", 4711)


@pytest.mark.parametrize("remote", [False, True])
def test_following(
    balsam: Balsam, echo: AppRecord, workdir: Path, remote: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is printed while it runs, and no longer than it runs."""
    service = balsam.service
    part = Files(service, echo.site_id, workdir.parent)
    if remote:
        monkeypatch.setattr(socket, "gethostname", lambda: "a laptop")
        part.start()
    job_id = new_job(balsam, echo)
    session = service.open_session(SessionSpec(site_id=echo.site_id))
    [job] = service.acquire(session.id, AcquireRequest(max_jobs=1, max_nodes=1))
    seen: list[bytes] = []
    grown = threading.Event()
    real = logs._print

    def watched(*args: object, **kwargs: object) -> int:
        position = real(*args, **kwargs)  # type: ignore[arg-type]
        seen.append(b"")
        if position:
            grown.set()
        return position

    monkeypatch.setattr(logs, "_print", watched)

    def report(state: JobState, **fields: object) -> None:
        said = Report(job_id=job.id, epoch=job.epoch, state=state, timestamp=now(), **fields)
        service.report(session.id, [said])

    def run() -> None:
        wait_until(lambda: bool(seen), 20, "the first look, when there is no file yet")
        report(JobState.RUNNING)
        with (workdir / "job.out").open("w") as file:
            print("first", file=file, flush=True)
            assert grown.wait(20)
            print("last", file=file)
        report(JobState.RUN_DONE, result=Result(ok=True))

    thread = threading.Thread(target=run)
    thread.start()
    assert balsam("job", "logs", job_id, "-f") == "first\nlast\n"
    thread.join(20)
    assert balsam("job", "logs", job_id, "-f") == "first\nlast\n", "it has ended already"
    part.stop()
    part.join(10)


def test_following_what_is_deleted(balsam: Balsam, echo: AppRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    job = new_job(balsam, echo)
    look = logs._print
    looks = 0

    def watched(*arguments: object, **options: object) -> int:
        nonlocal looks
        position = look(*arguments, **options)  # type: ignore[arg-type]
        looks += 1
        if looks == 1:
            balsam.service.delete_job(job)
        return position

    monkeypatch.setattr(logs, "_print", watched)
    assert balsam("job", "logs", job, "--follow") == ""
    assert looks == 2
