"""`balsam job logs`: what a job prints, also while it does."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from balsam_exec.cli.common import connect
from balsam_exec.model.errors import InvalidRequest, NotFound
from balsam_exec.model.states import TERMINAL

if TYPE_CHECKING:
    from balsam_exec.client.files import JobFiles
    from balsam_exec.model.jobs import JobRecord

#: Seconds between two looks at a file that may grow: of that no event tells.
_PERIOD = 1.0


def logs(
    job_id: Annotated[int, typer.Argument(help="Id of a job.", metavar="ID")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    stderr: Annotated[bool, typer.Option("--stderr", help="Its stderr, where that is a file of its own.")] = False,
    file: Annotated[str, typer.Option("--file", help="Another file of its workdir.", metavar="PATH")] = "",
) -> None:
    """Print what a job has printed, wherever it runs; or another file of its workdir."""
    from balsam_exec.client.files import JobFiles
    from balsam_exec.model.events import Kind
    from balsam_exec.model.queries import FeedQuery

    service = connect()
    ends = FeedQuery(kind=[Kind.JOB], subject_id=[job_id], to_state=[*sorted(TERMINAL), "deleted"])
    cursor = service.feed(ends).cursor if follow else ""
    job = service.job(job_id)
    path = _chosen(job, stderr, file)
    files = JobFiles(service)
    ended = not follow or job.state in TERMINAL
    position = _print(files, job, path, 0, must_exist=ended)
    while not ended:
        told = service.feed(ends.model_copy(update={"cursor": cursor, "timeout": _PERIOD}))
        cursor, ended = told.cursor, bool(told.events)
        position = _print(files, job, path, position, must_exist=False)


def _chosen(job: JobRecord, stderr: bool, file: str) -> str:
    if stderr and file:
        raise typer.BadParameter("say --stderr or --file, not both")
    if stderr and not job.stderr:
        raise InvalidRequest(f"the stderr of job {job.id} goes together with its stdout")
    return job.stderr if stderr else file or job.stdout


def _print(files: JobFiles, job: JobRecord, path: str, position: int, *, must_exist: bool) -> int:
    """What there is from `position` on; where it ends now."""
    from balsam_exec.model.files import MAX_CHUNK

    while True:
        try:
            chunk = files.read(job, path, offset=position, length=MAX_CHUNK)
        except NotFound:
            if must_exist or position:
                raise
            return 0
        sys.stdout.buffer.write(chunk.data)
        sys.stdout.buffer.flush()
        position += len(chunk.data)
        if not chunk.data or position >= chunk.size:
            return position
