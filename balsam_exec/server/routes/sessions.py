"""/sessions: how launchers hold jobs."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from balsam_exec.model.base import Page
from balsam_exec.model.errors import ServiceUnavailable
from balsam_exec.model.queries import Query, SessionQuery
from balsam_exec.model.sessions import (
    Acquired,
    AcquireRequest,
    Heartbeat,
    ReportBatch,
    SessionOrders,
    SessionRecord,
    SessionSpec,
)
from balsam_exec.server.auth import User
from balsam_exec.server.routes.http import Body, Key, PathId, QueryString, answer, described, empty, read_bytes, runtime
from balsam_exec.server.routes.waiting import until_found
from balsam_exec.server.service import leases, sessions
from balsam_exec.server.service.unit import orders_for, room_of, work_at

router = APIRouter(prefix="/sessions", tags=["sessions"])

QUERY = QueryString[Query](SessionQuery)
SPEC = Body[SessionSpec](SessionSpec)
ACQUIRE = Body[AcquireRequest](AcquireRequest)
HEARTBEAT = Body[Heartbeat](Heartbeat)
REPORT = Body[ReportBatch](ReportBatch)
#: So many reports are recorded in a few milliseconds.
BRIEF = 200


@router.get("", **described(Page[SessionRecord], query=QUERY))
async def list_sessions(request: Request, user: User) -> Response:
    return answer(await runtime(request).read(sessions.sessions, user, QUERY.read(request)))


@router.post("", **described(SessionRecord, 201, SPEC))
async def open_session(request: Request, user: User) -> Response:
    return answer(await runtime(request).write(sessions.open_session, user, await SPEC.read(request)), 201)


@router.put("/{session_id}", **described(SessionOrders, body=HEARTBEAT))
async def heartbeat(request: Request, session_id: PathId, user: User) -> Response:
    """Extends the session by its `ttl_sec` from now, as acquire and report do too, and gives its orders: waits up to
    `timeout` seconds for one to kill a job that is not in `killing`."""
    heard = HEARTBEAT.parse(await read_bytes(request) or b"{}")
    app = runtime(request)

    async def attempt() -> dict[str, Any]:
        return await app.write_brief(leases.heartbeat, user, session_id)

    session = await until_found(
        app.hub,
        heard.timeout,
        attempt,
        found=lambda session: leases.has_news(session, heard),
        topics=lambda session: [orders_for(session_id)],
        at_least_every=lambda session: session["ttl_sec"] / 3,
        request=request,
    )
    if app.hub.closed and heard.timeout:  # so it may be long ago that the session was extended
        raise ServiceUnavailable("the service is about to stop: try again")
    return answer(session)


@router.delete("/{session_id}", **described(None, 204))
async def close_session(request: Request, session_id: PathId, user: User) -> Response:
    """Its jobs are free again at once; those that run time out and restart."""
    await runtime(request).write(sessions.close_session, user, session_id)
    return empty()


@router.post("/{session_id}/acquire", **described(Acquired, body=ACQUIRE))
async def acquire(request: Request, session_id: PathId, user: User, key: Key = None) -> Response:
    """Lease runnable jobs; waits up to `timeout` seconds for the first, or until a report of the session says `widen`.

    With an `Idempotency-Key` a request whose answer was lost can be repeated, and gives the same jobs.
    """
    wanted = await ACQUIRE.read(request)
    app = runtime(request)
    drained = request.app.state.drained
    asked = leases.Asked.by(user, wanted, key)
    begin, room = app.hub.generation, room_of(session_id)

    async def attempt() -> leases.Lease:
        generation = app.hub.generation
        lease = await app.write_brief(leases.acquire, user, session_id, wanted, key)
        drained.note(session_id, asked, generation, lease)
        return lease

    lease = await until_found(
        app.hub,
        wanted.timeout,
        attempt,
        found=lambda lease: bool(lease.jobs) or not app.hub.quiet_since(begin, [room]),
        topics=lambda lease: [work_at(lease.site_id), room],
        at_least_every=lambda lease: lease.ttl_sec / 3,
        request=request,
        known=drained.known(session_id, asked) if wanted.timeout else None,
    )
    return answer({"jobs": lease.jobs})


@router.post("/{session_id}/report", **described(None, 204, REPORT))
async def report(request: Request, session_id: PathId, user: User) -> Response:
    """What happened to leased jobs: all of it is recorded, or nothing (409 `stale_lease`)."""
    batch = await REPORT.read(request)
    app = runtime(request)
    write = app.write_brief if len(batch.reports) <= BRIEF else app.write
    await write(leases.report, user, session_id, batch.reports, batch.widen)
    return empty()
