"""/events: the log and the feed."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from balsam_exec.model.base import Page
from balsam_exec.model.events import EventRecord, Feed
from balsam_exec.model.queries import EventQuery, FeedQuery, Query
from balsam_exec.server.auth import User
from balsam_exec.server.routes.http import QueryString, answer, described, runtime
from balsam_exec.server.routes.waiting import until_found
from balsam_exec.server.service import feed
from balsam_exec.server.service.unit import topics_of

router = APIRouter(prefix="/events", tags=["events"])

QUERY = QueryString[Query](EventQuery)
FEED = QueryString(FeedQuery)


@router.get("", **described(Page[EventRecord], query=QUERY))
async def list_events(request: Request, user: User) -> Response:
    """The log: every transition of every job and batch job."""
    return answer(await runtime(request).read(feed.log, user, QUERY.read(request)))


@router.get("/feed", **described(Feed, query=FEED))
async def read_feed(request: Request, user: User) -> Response:
    """Events after the cursor, in the order in which they were committed; waits up to `timeout` seconds for the first.

    None is skipped and none is told twice to who goes on with the cursor of the last answer.
    """
    query = FEED.read(request)
    app = runtime(request)
    hub = app.hub
    cursor = None if query.cursor is None else feed.Cursor.parse(query.cursor)
    topics = topics_of(user, query)

    async def attempt() -> feed.Told:
        nonlocal cursor
        generation = hub.generation
        told = await app.read_brief(feed.read_feed, user, cursor and cursor.event_id, query, app.max_entity)
        # What the filter left out is not looked at again.
        cursor = feed.Cursor(told.event_id, hub.name, generation) if told.complete else feed.Cursor(told.event_id)
        return told

    if cursor is None:
        told = await attempt()
    else:
        nothing_new = query.timeout and cursor.hub == hub.name and hub.quiet_since(cursor.generation, topics)
        told = await until_found(
            hub,
            query.timeout,
            attempt,
            found=lambda told: bool(told.events),
            topics=lambda _: topics,
            known=feed.Told(cursor.event_id, [], True) if nothing_new else None,
        )
    return answer({"cursor": str(cursor), "events": told.events})
