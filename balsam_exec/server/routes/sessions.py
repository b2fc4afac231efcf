"""/sessions: how launchers hold jobs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
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
    asked = await ACQUIRE.read(request)
    lease = await _Taker(request, session_id, user, key, asked).take(asked)
    return answer({"jobs": lease.jobs})


async def keep_acquiring(request: Request, session_id: int, user: int, key: str | None) -> AsyncGenerator[Response]:
    """What is asked for little by little, as it comes up; 204 when all is given, or it waits no longer.

    With its key a usual acquire gives all that the session holds: what came here, and what was lost.
    """
    asked = await ACQUIRE.read(request)
    taker = _Taker(request, session_id, user, key, asked, stands=True)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + asked.timeout
    wanted: AcquireRequest | None = asked
    while wanted is not None and (lease := await taker.take(wanted)).jobs:
        yield answer({"jobs": lease.jobs})
        wanted = leases.rest_of(wanted, lease.jobs, max(0.0, deadline - loop.time()))
    yield empty()


class _Taker:
    """Takes jobs for a session as one call of acquire, several times if it stands."""

    def __init__(
        self,
        request: Request,
        session_id: int,
        user: int,
        key: str | None,
        asked: AcquireRequest,
        *,
        stands: bool = False,
    ) -> None:
        self._stands = stands
        self._request = request
        self._app = runtime(request)
        self._drained: leases.Drained = request.app.state.drained
        self._session_id = session_id
        self._user = user
        self._key = key
        self._asked = leases.Asked.by(user, asked, key)
        self._room = room_of(session_id)
        self._begin = self._app.hub.generation
        self._goes_on = False

    async def take(self, wanted: AcquireRequest) -> leases.Lease:
        """Waits for something to take, or until there is more room for it."""
        hub, asked, goes_on = self._app.hub, self._asked, self._goes_on
        place = self._app.handover.place(
            lambda unit: leases.acquire(
                unit, self._user, self._session_id, wanted, self._key, stands=self._stands, goes_on=goes_on
            )
        )

        async def attempt() -> leases.Lease:
            place.leave()  # what was given while it takes something itself would replace that
            generation = hub.generation
            lease, generation = place.fetch() or (await self._app.write_brief(place.take), generation)
            self._drained.note(self._session_id, asked, generation, lease)
            place.wait_for(work_at(lease.site_id))
            return lease

        known = self._drained.known(self._session_id, asked, goes_on=goes_on) if wanted.timeout else None
        if known is not None:
            place.wait_for(work_at(known.site_id))
        try:
            lease = await until_found(
                hub,
                wanted.timeout,
                attempt,
                found=lambda lease: bool(lease.jobs) or not hub.quiet_since(self._begin, [self._room]),
                topics=lambda lease: [work_at(lease.site_id), self._room],
                at_least_every=lambda lease: lease.ttl_sec / 3,
                request=self._request,
                known=known,
            )
        finally:
            place.leave()
        if late := place.fetch():
            lease = late.lease
        self._goes_on = bool(lease.jobs)
        return lease


@router.post("/{session_id}/report", **described(None, 204, REPORT))
async def report(request: Request, session_id: PathId, user: User) -> Response:
    """What happened to leased jobs: all of it is recorded, or nothing (409 `stale_lease`)."""
    batch = await REPORT.read(request)
    app = runtime(request)
    write = app.write_brief if len(batch.reports) <= BRIEF else app.write
    await write(leases.report, user, session_id, batch.reports, batch.widen)
    return empty()
