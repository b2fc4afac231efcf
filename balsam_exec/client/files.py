"""Files of jobs: from the disk where the site is on this machine, else through the agent of the site."""

from __future__ import annotations

import os
import socket
import stat
from datetime import UTC, datetime
from pathlib import Path

from balsam_exec.client.lookups import build
from balsam_exec.client.service import Service
from balsam_exec.model.errors import Forbidden, InvalidRequest, NotFound
from balsam_exec.model.files import DEFAULT_CHUNK, FileChunk, ReadRequest
from balsam_exec.model.jobs import JobRecord, check_workdir
from balsam_exec.model.sites import SiteRecord


class JobFiles:
    """Reads files of jobs of one service. Thread-safe."""

    def __init__(self, service: Service, *, local: bool = True) -> None:
        """Without `local` it always asks the sites' agents."""
        self._service = service
        self._local = local
        self._found: dict[int, Path | None] = {}  #: the data directories of sites that are on this machine

    def read(
        self, job: JobRecord, path: str = "", *, offset: int = 0, length: int = DEFAULT_CHUNK, timeout: float = 30
    ) -> FileChunk:
        """A part of a file of the job's workdir; `path` "" is its stdout, a negative `offset` counts from the end.

        Raises NotFound for a file that is not there (yet), Forbidden, InvalidRequest (it is outside of the workdir, or
        no file), SiteUnreachable when the site's agent does not answer within `timeout` seconds.
        """
        data = self._data(job.site_id)
        if data is None:
            return self._service.read_file(job.id, path, offset=offset, length=length, timeout=timeout)
        return read_chunk(data, job.workdir, path or job.stdout, offset, length)

    def _data(self, site_id: int) -> Path | None:
        if not self._local:
            return None
        if site_id not in self._found:
            self._found[site_id] = local_data(self._service.site(site_id))
        return self._found[site_id]


def local_data(site: SiteRecord, access: int = os.R_OK | os.X_OK) -> Path | None:
    """The directory of the site's workdirs, if the site is on this machine and we have this `access` to it."""
    data = Path(site.path, "data")
    here = site.path and site.hostname == socket.gethostname() and os.access(data, access)
    return data if here else None


def read_chunk(data: Path, workdir: str, path: str, offset: int, length: int) -> FileChunk:
    """A part of the file `path` of a workdir in the site's directory `data`, as ReadRequest and FileChunk describe it.

    Only regular files are read, and only inside the workdir, wherever symbolic links lead; the workdir may itself be
    one. Raises NotFound, Forbidden, InvalidRequest.
    """
    build(ReadRequest, {"path": path, "offset": offset, "length": length})
    try:
        check_workdir(workdir)
    except ValueError as error:
        raise InvalidRequest(str(error)) from None
    try:
        return _read(data / workdir, path, offset, length)
    except (FileNotFoundError, NotADirectoryError):
        missing = path if (data / workdir).is_dir() else f"{path}: its workdir, {workdir}, was not made"
        raise NotFound(f"there is no file {missing} (yet)") from None
    except PermissionError:
        raise Forbidden(f"the site may not read {path} in {workdir}") from None
    except OSError as error:
        raise InvalidRequest(f"{path} in {workdir} cannot be read: {error.strerror}") from None


def _read(workdir: Path, path: str, offset: int, length: int) -> FileChunk:
    # A descriptor that can only be looked at: nothing is opened, waited for or changed (think of FIFOs and devices)
    # before we know what it is and where; and what is then opened is the same, whatever has been renamed meanwhile.
    found = os.open(workdir / path, os.O_PATH | os.O_CLOEXEC)
    try:
        name = f"/proc/self/fd/{found}"
        if not Path(os.readlink(name)).is_relative_to(workdir.resolve()):
            raise InvalidRequest(f"{path} leads out of the job's workdir")
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise InvalidRequest(f"{path} is not a file")
        file = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(found)
    try:
        status = os.fstat(file)
        start = offset if offset >= 0 else max(0, status.st_size + offset)
        return FileChunk(
            data=os.pread(file, length, start),
            offset=start,
            size=status.st_size,
            modified=datetime.fromtimestamp(status.st_mtime, UTC),
        )
    finally:
        os.close(file)
