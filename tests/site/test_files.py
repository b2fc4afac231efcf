"""The agent reads files of jobs for those who are elsewhere."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from balsam_exec.client.files import JobFiles
from balsam_exec.client.service import Service
from balsam_exec.model.apps import AppSpec
from balsam_exec.model.errors import InvalidRequest, NotFound, SiteUnreachable
from balsam_exec.model.files import FileAnswer, FileRequestQuery
from balsam_exec.model.jobs import JobSpec
from balsam_exec.model.sites import SiteSpec
from balsam_exec.site import files
from balsam_exec.site.files import Files
from tests.site.conftest import SiteBench
from tests.support.processes import wait_until
from tests.support.services import LiveService


class Bench:
    """A site on a live service, a job of it, and the part of the agent that reads its files."""

    def __init__(self, live: LiveService, data: Path) -> None:
        self.live = live
        self.service: Service = live.service
        self.data = data
        self.site = self.service.create_site(SiteSpec(name="away", hostname="elsewhere", path=str(data.parent)))
        app = self.service.put_app(AppSpec(site_id=self.site.id, name="Echo", command_template="echo"))
        spec = JobSpec(app_id=app.id, workdir="run/1", stdout="out.txt")
        self.job = self.service.create_jobs([spec])[0].id
        self.workdir = data / "run/1"
        self.workdir.mkdir(parents=True)
        (self.workdir / "out.txt").write_bytes(b"hello\n")
        self._parts: list[Files] = []

    def agent(self) -> Files:
        part = Files(self.service, self.site.id, self.data)
        part.start()
        self._parts.append(part)
        return part

    def stop(self) -> None:
        for part in self._parts:
            part.stop()
            part.join(10)

    def read(self, path: str = "", timeout: float = 30) -> bytes:
        return self.service.read_file(self.job, path, timeout=timeout).data


@pytest.fixture
def bench(start_service: Callable[[str], LiveService], sqlite_url: str, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(start_service(sqlite_url), tmp_path / "data")
    yield bench
    bench.stop()


def test_it_reads_what_it_is_asked_for(bench: Bench) -> None:
    bench.agent()
    assert bench.read() == b"hello\n"
    assert bench.service.read_file(bench.job, offset=-3, length=2).data == b"lo"
    with pytest.raises(NotFound, match=r"there is no file nope \(yet\)"):
        bench.read("nope")
    (bench.workdir / "link").symlink_to("/etc/passwd")
    with pytest.raises(InvalidRequest, match="leads out"):
        bench.read("link")
    record = bench.service.job(bench.job)
    assert JobFiles(bench.service).read(record).data == b"hello\n"


def test_many_at_once(bench: Bench) -> None:
    bench.agent()
    for number in range(30):
        (bench.workdir / str(number)).write_text(str(number))
    with ThreadPoolExecutor(10) as pool:
        assert list(pool.map(bench.read, map(str, range(30)))) == [str(n).encode() for n in range(30)]


def test_a_slow_file_system_does_not_hold_up_others(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Event()
    real = files.answer

    def stuck(data: Path, request: files.FileRequest) -> FileAnswer:
        if request.path == "slow":
            slow.wait(60)
        return real(data, request)

    monkeypatch.setattr(files, "answer", stuck)
    (bench.workdir / "slow").write_bytes(b"at last")
    bench.agent()
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(bench.read, "slow")
        query = FileRequestQuery(timeout=10)
        assert [request.path for request in bench.service.file_requests(bench.site.id, query)] == ["slow"]
        assert bench.read() == bench.read() == b"hello\n"
        assert not late.done()
        slow.set()
        assert late.result(30) == b"at last"


def test_without_an_agent_there_is_no_answer_and_with_one_there_is(bench: Bench) -> None:
    with pytest.raises(SiteUnreachable, match="does it run on elsewhere"):
        bench.read(timeout=0.2)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(bench.read)
        bench.service.file_requests(bench.site.id, FileRequestQuery(timeout=10))
        bench.agent()  # finds what is waiting
        assert waiting.result(30) == b"hello\n"


def test_it_outlives_a_restart_of_the_service(bench: Bench) -> None:
    bench.agent()
    assert bench.read() == b"hello\n"
    bench.live.restart()
    assert bench.read() == b"hello\n"


def test_it_stops_at_once(bench: Bench) -> None:
    part = bench.agent()
    assert bench.read() == b"hello\n"
    start = time.monotonic()
    part.stop()
    part.join(20)
    assert time.monotonic() - start < 5, "its long poll is cut"


def test_nobody_waits_any_more(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A late answer is dropped, and the reader goes on."""
    asked, gone = Event(), Event()
    real = files.answer

    def late(data: Path, request: files.FileRequest) -> FileAnswer:
        asked.set()
        assert gone.wait(30)
        return real(data, request)

    monkeypatch.setattr(files, "answer", late)
    bench.agent()
    with pytest.raises(SiteUnreachable):
        bench.read(timeout=1)
    assert asked.is_set()
    gone.set()
    for _ in range(4):
        assert bench.read() == b"hello\n"


def test_the_agent_of_a_site_reads(site_bench: SiteBench) -> None:
    """As a process, told to look where the site has its data."""
    service = site_bench.service
    app = service.put_app(AppSpec(site_id=site_bench.record.id, name="Echo", command_template="echo"))
    job = service.job(service.create_jobs([JobSpec(app_id=app.id, workdir="w")])[0].id)
    site_bench.agent()
    workdir = site_bench.site.data / "w"
    workdir.mkdir()
    (workdir / "job.out").write_bytes(b"here")
    assert service.read_file(job.id).data == b"here"
    assert service.site(job.site_id).hostname == socket.gethostname()
    (workdir / "job.out").write_bytes(b"here and now")
    assert JobFiles(service).read(job).data == b"here and now"
    wait_until(lambda: service.file_requests(job.site_id, FileRequestQuery()) == [], 10, "no request to be left")
