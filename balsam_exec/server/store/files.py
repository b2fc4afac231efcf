"""SQL of the reads of files that sites are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from balsam_exec.server.store.schema import file_requests, job_payloads, jobs
from balsam_exec.server.store.types import AnyRow, dicts


def place(connection: Connection, owner_id: int, job_id: int) -> AnyRow | None:
    """(site_id, workdir, stdout) of a job."""
    query = select(jobs.c.site_id, job_payloads.c.workdir, job_payloads.c.stdout)
    query = query.join(job_payloads, job_payloads.c.job_id == jobs.c.id)
    return connection.execute(query.where(jobs.c.id == job_id, jobs.c.owner_id == owner_id)).one_or_none()


def open_requests(connection: Connection, owner_id: int, now: int) -> int:
    query = select(func.count()).where(file_requests.c.owner_id == owner_id, file_requests.c.expires > now)
    return connection.execute(query).scalar_one()


def insert_request(connection: Connection, values: dict[str, Any]) -> int:
    found: int = connection.execute(insert(file_requests).values(values).returning(file_requests.c.id)).scalar_one()
    return found


def unanswered(connection: Connection, site_id: int, known: Sequence[int], now: int) -> list[dict[str, Any]]:
    """FileRequests of the site, oldest first, without those that are known already."""
    query = select(
        *(file_requests.c[name] for name in ("id", "job_id", "workdir", "path", "length")),
        file_requests.c.start.label("offset"),
    ).where(
        file_requests.c.site_id == site_id,
        file_requests.c.answer.is_(None),
        file_requests.c.expires > now,
        file_requests.c.id.not_in(known),
    )
    return dicts(connection.execute(query.order_by(file_requests.c.id)))


def store_answer(connection: Connection, owner_id: int, request_id: int, answer: bytes) -> bool:
    """Whether the owner has such a request."""
    where = (file_requests.c.id == request_id, file_requests.c.owner_id == owner_id)
    return connection.execute(update(file_requests).where(*where).values(answer=answer)).rowcount == 1


def answer(connection: Connection, request_id: int) -> bytes | None:
    found = connection.execute(select(file_requests.c.answer).where(file_requests.c.id == request_id)).scalar()
    return None if found is None else bytes(found)


def delete_request(connection: Connection, request_id: int) -> None:
    connection.execute(delete(file_requests).where(file_requests.c.id == request_id))


def forget(connection: Connection, now: int) -> None:
    connection.execute(delete(file_requests).where(file_requests.c.expires <= now))
