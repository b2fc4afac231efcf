"""/events: the log and the feed."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from fastapi import APIRouter, Request, Response

from balsam_exec.model.base import Page
from balsam_exec.model.events import EventRecord, Feed
from balsam_exec.model.queries import EventQuery, FeedQuery, Query
from balsam_exec.server.auth import User
from balsam_exec.server.routes.http import QueryString, answer, described, empty, runtime
from balsam_exec.server.routes.waiting import until_found
from balsam_exec.server.service import feed
from balsam_exec.server.service.unit import topics_of

router = APIRouter(prefix="/events", tags=["events"])

QUERY = QueryString[Query](EventQuery)
FEED = QueryString(FeedQuery)
#: Seconds after which who follows the feed looks into it though nothing woke him.
_A_WHILE = 60.0


@router.get("", **described(Page[EventRecord], query=QUERY))
async def list_events(request: Request, user: User) -> Response:
    """The log: every transition of every job and batch job."""
    return answer(await runtime(request).read(feed.log, user, QUERY.read(request)))


@router.get("/feed", **described(Feed, query=FEED))
async def read_feed(request: Request, user: User) -> Response:
    """Events after the cursor, in the order in which they were committed; waits up to `timeout` seconds for the first.

    None is skipped and none is told twice to who goes on with the cursor of the last answer.
    """
    reader = _Reader(request, user)
    return reader.answer(await reader.next(reader.query.timeout))


async def follow_feed(request: Request, user: int) -> AsyncGenerator[Response]:
    """What `read_feed` answers to who asks again and again, each as it comes; 204 when the service ends."""
    reader = _Reader(request, user)
    with reader.hub.subscribe(reader.topics) as subscription:
        while not reader.hub.closed:
            told = await reader.look()
            if told.events:
                yield reader.answer(told)
            if told.complete:
                await subscription.wait(_A_WHILE)
    yield empty()


class _Reader:
    """Goes through the feed as a request asks for it."""

    def __init__(self, request: Request, user: int) -> None:
        self._user = user
        self.query = FEED.read(request)
        self._app = runtime(request)
        self.hub = self._app.hub
        self._cursor = None if self.query.cursor is None else feed.Cursor.parse(self.query.cursor)
        self.topics = topics_of(user, self.query)

    async def next(self, timeout: float) -> feed.Told:
        """What there is after the cursor, or comes within the timeout; without a cursor the end of the feed."""
        hub, cursor = self.hub, self._cursor
        if cursor is None:
            return await self.look()
        nothing_new = timeout and cursor.hub == hub.name and hub.quiet_since(cursor.generation, self.topics)
        return await until_found(
            hub,
            timeout,
            self.look,
            found=lambda told: bool(told.events),
            topics=lambda _: self.topics,
            known=feed.Told(cursor.event_id, [], True) if nothing_new else None,
        )

    async def look(self) -> feed.Told:
        app, user, query = self._app, self._user, self.query
        generation, after = self.hub.generation, self._cursor and self._cursor.event_id
        told = None if after is None else app.recent.told(user, after, query)
        if told is None:
            told = await app.read_brief(feed.read_feed, user, after, query, app.max_entity)
        # What the filter left out is not looked at again.
        place = (told.event_id, self.hub.name, generation) if told.complete else (told.event_id,)
        self._cursor = feed.Cursor(*place)
        return told

    def answer(self, told: feed.Told) -> Response:
        return answer({"cursor": str(self._cursor), "events": told.events})
