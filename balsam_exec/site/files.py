"""Reads files of jobs for those who cannot: the service hands their requests on to this agent."""

from __future__ import annotations

import logging
import math
import queue
import threading
from pathlib import Path
from typing import TypeAlias

from balsam_exec.client.files import read_chunk
from balsam_exec.client.service import Service
from balsam_exec.model.errors import Forbidden, InvalidRequest, NotFound, ServiceUnavailable
from balsam_exec.model.files import FileAnswer, FileRequest, FileRequestQuery
from balsam_exec.site.part import Part

log = logging.getLogger(__name__)

#: Seconds one long poll waits.
_POLL = 30.0
#: Files that are read at the same time, so that one on a slow file system does not hold up all others.
_READERS = 2

_Requests: TypeAlias = "queue.SimpleQueue[FileRequest | None]"


class Files(Part):
    """Idle it costs one held connection: the service answers as soon as somebody wants a file."""

    name = "files"

    def __init__(self, service: Service, site_id: int, data: Path) -> None:
        super().__init__()
        self._service = service.sibling()  # connections of its own, to be cut when it is to stop
        self._site_id = site_id
        self._data = data
        self._known: set[int] = set()  #: requests that are waiting for a reader or being answered

    def run(self) -> None:
        requests: _Requests = queue.SimpleQueue()
        for number in range(_READERS):
            # Daemons: one that hangs in a file system cannot keep the process.
            threading.Thread(target=self._read, args=(requests,), name=f"file-reader-{number}", daemon=True).start()
        try:
            while not self.stopped:
                query = FileRequestQuery(timeout=_POLL, known=sorted(self._known.copy()))
                for request in self._service.file_requests(self._site_id, query, deadline=math.inf):
                    self._known.add(request.id)
                    requests.put(request)
        finally:
            for _ in range(_READERS):
                requests.put(None)

    def stop(self) -> None:
        super().stop()
        self._service.close()

    def _read(self, requests: _Requests) -> None:
        while (request := requests.get()) is not None:
            try:
                self._service.answer_file_request(request.id, answer(self._data, request))
                self.progress(f"answered for {request.path} of job {request.job_id}")
            except NotFound:
                log.debug("nobody waits for %s of job %d any more", request.path, request.job_id)
            except ServiceUnavailable as error:  # once it is back it asks again, if anybody still waits
                log.warning("%s", error)
            except Exception:
                log.exception("%s of job %d cannot be answered", request.path, request.job_id)
                continue  # it stays known, so as not to come back at once
            self._known.discard(request.id)


def answer(data: Path, request: FileRequest) -> FileAnswer:
    """What is to be said to a request; `data` is the site's directory of workdirs."""
    try:
        return FileAnswer(chunk=read_chunk(data, request.workdir, request.path, request.offset, request.length))
    except NotFound as error:
        return FileAnswer(code="not_found", message=error.message)
    except Forbidden as error:
        return FileAnswer(code="forbidden", message=error.message)
    except InvalidRequest as error:
        return FileAnswer(code="invalid_request", message=error.message)
