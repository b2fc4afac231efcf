"""Reading files of jobs. The service reaches into no site: it keeps a request until the agent there has answered it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from balsam_exec.model.errors import BY_CODE, Conflict, NotFound, SiteUnreachable
from balsam_exec.model.files import FileAnswer, FileChunk, ReadRequest
from balsam_exec.model.jobs import STDOUT
from balsam_exec.server.service.unit import Unit
from balsam_exec.server.service.words import ago
from balsam_exec.server.store import files as store
from balsam_exec.server.store import sites as site_store
from balsam_exec.server.store.database import Connection

#: Reads of one owner that may wait at the same time.
MAX_OPEN = 100
#: Microseconds that a request outlives the patience of who asked: it is then deleted by whoever asked, or reaped.
_MARGIN = 10_000_000


class Asked(NamedTuple):
    """A request that is kept for the agent of a site."""

    id: int
    site_id: int


def requests_at(site_id: int) -> str:
    """The topic of new requests to a site."""
    return f"files:{site_id}"


def answer_to(request_id: int) -> str:
    return f"file:{request_id}"


def ask(unit: Unit, owner_id: int, job_id: int, wanted: ReadRequest) -> Asked:
    """Keep a request for the agent of the job's site. Raises NotFound (the job), Conflict (too many at once)."""
    found = store.place(unit.connection, owner_id, job_id)
    if found is None:
        raise NotFound(f"there is no job {job_id}")
    if store.open_requests(unit.connection, owner_id, unit.now) >= MAX_OPEN:
        raise Conflict(f"{MAX_OPEN} files are being read for you at this moment, which is the limit: try again later")
    values = {
        "owner_id": owner_id,
        "site_id": found.site_id,
        "job_id": job_id,
        "workdir": found.workdir,
        "path": wanted.path or found.stdout or STDOUT,
        "start": wanted.offset,
        "length": wanted.length,
        "expires": unit.now + round(wanted.timeout * 1_000_000) + _MARGIN,
    }
    unit.topics.add(requests_at(found.site_id))
    return Asked(store.insert_request(unit.connection, values), found.site_id)


def answer_of(connection: Connection, asked: Asked) -> FileAnswer | None:
    """What the agent has said, if it has."""
    found = store.answer(connection, asked.id)
    return None if found is None else FileAnswer.model_validate_json(found)


def chunk_of(answer: FileAnswer) -> FileChunk:
    """What was read. Raises the error that the agent met."""
    if answer.chunk is None:
        raise BY_CODE[answer.code or NotFound.code](answer.message)
    return answer.chunk


def close(unit: Unit, asked: Asked) -> None:
    """Nobody waits for it any more."""
    store.delete_request(unit.connection, asked.id)


def unreachable(connection: Connection, owner_id: int, asked: Asked, timeout: float, now: datetime) -> SiteUnreachable:
    """Why a request was not answered in time."""
    site = site_store.site(connection, owner_id, asked.site_id)
    if site is None:
        return SiteUnreachable(f"site {asked.site_id} was deleted")
    if site.last_refresh is None:
        heard = "it was never heard of"
    else:
        heard = f"it was last heard of {ago(site.last_refresh, now)}"
    return SiteUnreachable(
        f"the agent of site {site.name!r} did not answer within {timeout:g} s; {heard}: does it run on "
        f"{site.hostname or 'its machine'}? See `balsam site ls`, `balsam site start`",
        site_id=site.id,
        last_refresh=None if site.last_refresh is None else site.last_refresh.isoformat(),
    )


def requests(connection: Connection, owner_id: int, site_id: int, known: Sequence[int], now: int) -> list[Any]:
    """What the agent of the site is asked for and does not know of yet. Raises NotFound (the site)."""
    if site_store.site(connection, owner_id, site_id) is None:
        raise NotFound(f"there is no site {site_id}")
    return store.unanswered(connection, site_id, known, now)


def give_answer(unit: Unit, owner_id: int, request_id: int, answer: FileAnswer) -> None:
    """Raises NotFound, also where nobody waits for it any more."""
    body = answer.model_dump_json(exclude_defaults=True).encode()
    if not store.store_answer(unit.connection, owner_id, request_id, body):
        raise NotFound(f"nobody waits for an answer to file request {request_id}")
    unit.topics.add(answer_to(request_id))
