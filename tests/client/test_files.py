"""Reading files of jobs: only inside the workdir, only regular files, bounded."""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balsam_exec.client.files import JobFiles, read_chunk
from balsam_exec.model.base import now
from balsam_exec.model.errors import Forbidden, InvalidRequest, NotFound
from balsam_exec.model.files import MAX_CHUNK, FileChunk
from balsam_exec.model.jobs import JobRecord
from balsam_exec.model.sites import SiteRecord

TEXT = b"0123456789"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A site's data directory with one workdir, and a secret outside of it."""
    workdir = tmp_path / "data/run/1"
    (workdir / "logs").mkdir(parents=True)
    (workdir / "job.out").write_bytes(TEXT)
    (workdir / "logs/more").write_bytes(b"more")
    (tmp_path / "data/run/10").mkdir()
    (tmp_path / "data/run/10/job.out").write_bytes(b"another job's")
    (tmp_path / "secret").write_bytes(b"secret")
    return tmp_path / "data"


def read(data: Path, path: str = "job.out", offset: int = 0, length: int = 100) -> FileChunk:
    return read_chunk(data, "run/1", path, offset, length)


@pytest.mark.parametrize(
    ("offset", "length", "start", "found"),
    [
        (0, 100, 0, TEXT),
        (3, 4, 3, b"3456"),
        (8, 4, 8, b"89"),
        (10, 4, 10, b""),
        (99, 4, 99, b""),
        (-3, 100, 7, b"789"),
        (-3, 2, 7, b"78"),
        (-99, 2, 0, b"01"),
        (5, 0, 5, b""),
    ],
)
def test_parts_of_a_file(data: Path, offset: int, length: int, start: int, found: bytes) -> None:
    os.utime(data / "run/1/job.out", (1_700_000_000, 1_700_000_000))
    chunk = read(data, offset=offset, length=length)
    assert (chunk.data, chunk.offset, chunk.size) == (found, start, 10)
    assert chunk.modified == datetime.fromtimestamp(1_700_000_000, UTC)


@given(offset=st.integers(-(2**62), 2**62), length=st.integers(0, MAX_CHUNK))
def test_a_part_is_what_python_slices(offset: int, length: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    data = tmp_path_factory.getbasetemp() / "slices"
    (data / "w").mkdir(parents=True, exist_ok=True)
    (data / "w/f").write_bytes(TEXT)
    chunk = read_chunk(data, "w", "f", offset, length)
    assert chunk.data == TEXT[offset:][:length]


@pytest.mark.parametrize("length", [-1, MAX_CHUNK + 1])
def test_a_part_is_bounded(data: Path, length: int) -> None:
    with pytest.raises(InvalidRequest, match="length"):
        read(data, length=length)


@pytest.mark.parametrize(
    "path", ["../10/job.out", "logs/../../10/job.out", "..", "/etc/passwd", "//etc/passwd", "a\0b"]
)
def test_paths_that_lead_out_are_refused(data: Path, path: str) -> None:
    with pytest.raises(InvalidRequest, match="relative to the job's workdir"):
        read(data, path)


@pytest.mark.parametrize("workdir", ["/etc", "../..", "run/../.."])
def test_so_are_workdirs_that_do(data: Path, workdir: str) -> None:
    """The agent does not rely on what the service has checked."""
    with pytest.raises(InvalidRequest, match="workdir"):
        read_chunk(data, workdir, "passwd", 0, 10)


@pytest.mark.parametrize("target", ["../10/job.out", "../../../secret", "/etc/passwd", "../../run/10/job.out"])
def test_links_that_lead_out_are_refused(data: Path, target: str) -> None:
    (data / "run/1/link").symlink_to(target)
    with pytest.raises(InvalidRequest, match="leads out of the job's workdir"):
        read(data, "link")


def test_directories_that_lead_out_are_refused(data: Path) -> None:
    (data / "run/1/up").symlink_to("..")
    with pytest.raises(InvalidRequest, match="leads out"):
        read(data, "up/10/job.out")
    assert read(data, "up/1/job.out").data == TEXT


def test_links_inside_are_followed(data: Path) -> None:
    (data / "run/1/inner").symlink_to("logs/more")
    (data / "run/1/absolute").symlink_to(data / "run/1/logs/more")
    assert read(data, "inner").data == read(data, "absolute").data == b"more"


def test_a_workdir_may_be_a_link(data: Path, tmp_path: Path) -> None:
    """To a scratch file system, say."""
    scratch = tmp_path / "scratch"
    (data / "run/1").rename(scratch)
    (data / "run/1").symlink_to(scratch)
    assert read(data, "logs/more").data == b"more"
    (scratch / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(InvalidRequest, match="leads out"):
        read(data, "link")


def test_only_files_are_read(data: Path) -> None:
    workdir = data / "run/1"
    os.mkfifo(workdir / "fifo")
    with socket.socket(socket.AF_UNIX) as bound:
        here = os.getcwd()
        os.chdir(workdir)  # the name of a socket is short
        try:
            bound.bind("socket")
        finally:
            os.chdir(here)
        for path in ("fifo", "socket", "logs", "."):
            with pytest.raises(InvalidRequest, match="is not a file"):
                read(data, path)


def test_devices_are_not_read(data: Path) -> None:
    with pytest.raises(InvalidRequest, match="is not a file"):
        read_chunk(Path("/"), "dev", "zero", 0, 10)


def test_what_is_not_there(data: Path) -> None:
    with pytest.raises(NotFound, match=r"there is no file nope \(yet\)"):
        read(data, "nope")
    with pytest.raises(NotFound, match="no file job"):
        read(data, "job.out/below")
    with pytest.raises(NotFound, match="its workdir, run/2, was not made"):
        read_chunk(data, "run/2", "job.out", 0, 10)


def test_what_cannot_be_read(data: Path) -> None:
    (data / "run/1/loop").symlink_to("loop")
    with pytest.raises(InvalidRequest, match="symbolic links"):
        read(data, "loop")
    with pytest.raises(InvalidRequest, match="too long"):
        read(data, "x" * 300)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read(data: Path) -> None:
    (data / "run/1/job.out").chmod(0)
    with pytest.raises(Forbidden, match=r"may not read job\.out"):
        read(data)


class Agents:
    """Stands for the service: answers about sites, and reads as their agents do."""

    def __init__(self, hostname: str, site: Path) -> None:
        common = {"created": now(), "path": str(site), "hostname": hostname}
        self.record = SiteRecord(id=7, name="here", **common)
        self.asked: list[tuple[Any, ...]] = []

    def site(self, site_id: int) -> SiteRecord:
        assert site_id == 7
        self.asked.append(("site",))
        return self.record

    def read_file(self, job_id: int, path: str, **how: Any) -> str:
        self.asked.append((job_id, path, how))
        return "what the agent read"


def job(**fields: Any) -> JobRecord:
    common = {"tags": {}, "data": {}, "parameters": {}, "created": now(), "last_update": now(), "state": "RUNNING"}
    return JobRecord(id=3, app_id=1, site_id=7, workdir="run/1", **common, **fields)


def test_a_site_on_this_machine_is_read_without_its_agent(data: Path) -> None:
    service = Agents(socket.gethostname(), data.parent)
    files = JobFiles(service)  # type: ignore[arg-type]
    assert files.read(job()).data == TEXT
    assert files.read(job(stdout="logs/more"), offset=1, length=2).data == b"or"
    assert files.read(job(), "logs/more").data == b"more"
    with pytest.raises(InvalidRequest):
        files.read(job(), "../10/job.out")
    assert service.asked == [("site",)]


@pytest.mark.parametrize("case", ["another host", "no such directory", "not wanted"])
def test_any_other_is_asked_of_its_agent(data: Path, case: str) -> None:
    hostname = "elsewhere" if case == "another host" else socket.gethostname()
    service = Agents(hostname, data.parent / "gone" if case == "no such directory" else data.parent)
    files = JobFiles(service, local=case != "not wanted")  # type: ignore[arg-type]
    assert files.read(job(stdout="o"), offset=-5, length=6, timeout=7) == "what the agent read"  # type: ignore[comparison-overlap]
    assert service.asked[-1] == (3, "", {"offset": -5, "length": 6, "timeout": 7})
