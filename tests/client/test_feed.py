from __future__ import annotations

import threading
import time
from itertools import islice

import pytest

from balsam_exec.client.feed import follow
from balsam_exec.client.service import Service
from balsam_exec.model.apps import AppRecord
from balsam_exec.model.errors import InvalidRequest, NotAuthenticated
from balsam_exec.model.events import FeedEvent
from balsam_exec.model.jobs import JobSpec
from balsam_exec.model.queries import FeedQuery
from tests.support.services import LiveService


def jobs(service: Service, app: AppRecord, count: int = 1) -> list[int]:
    return [made.id for made in service.create_jobs([JobSpec(app_id=app.id, workdir="w")] * count)]


def test_what_happens_after_follow_returns_is_told(service: Service, app: AppRecord) -> None:
    before = jobs(service, app)
    with follow(service, site_id=app.site_id, to_state=["USER_KILLED"]) as events:
        ids = jobs(service, app, 3)
        service.cancel_jobs([*before, *ids])
        told = [event.subject_id for event in islice(events, 4)]
    assert sorted(told) == sorted([*before, *ids])


def test_a_cursor_continues_where_another_follower_was(service: Service, app: AppRecord) -> None:
    with follow(service, site_id=app.site_id, to_state=["PREPROCESSED"]) as first:
        ids = jobs(service, app, 2)
        assert {event.subject_id for event in next(first.batches())} == set(ids)
    later = jobs(service, app)
    query = FeedQuery(cursor=first.cursor, site_id=[app.site_id], to_state=["PREPROCESSED"])
    with follow(service, query) as second:
        assert [event.subject_id for event in next(second.batches())] == later


def test_stop_ends_a_waiting_iteration_at_once_and_cuts_nobody_else(service: Service, app: AppRecord) -> None:
    events = follow(service, site_id=app.site_id)
    found: list[FeedEvent] = []
    entered = threading.Event()

    def iterate() -> None:
        entered.set()
        found.extend(events)

    thread = threading.Thread(target=iterate)
    thread.start()
    assert entered.wait(10)
    started = time.monotonic()
    events.stop()
    thread.join(10)
    assert not thread.is_alive()
    assert time.monotonic() - started < 2  # and not after the whole poll
    assert found == []
    assert service.health().status == "ok"
    assert list(events) == []


def test_it_goes_on_over_a_restart_of_the_service(live: LiveService, service: Service, app: AppRecord) -> None:
    told: list[int] = []
    with follow(service, site_id=app.site_id, to_state=["PREPROCESSED"]) as events:
        enough = threading.Event()

        def iterate() -> None:
            for event in events:
                told.append(event.subject_id)
                if len(told) == 4:
                    enough.set()

        thread = threading.Thread(target=iterate)
        thread.start()
        ids = jobs(service, app, 2)
        live.restart()
        ids += jobs(service, app, 2)
        assert enough.wait(60)
    thread.join(10)
    assert not thread.is_alive()
    assert told == ids


def test_what_is_refused_is_raised(live: LiveService, service: Service) -> None:
    nobody = Service(live.url, "wrong")
    with pytest.raises(NotAuthenticated):
        follow(nobody)
    nobody.close()
    with pytest.raises(InvalidRequest):
        follow(service, to_stat="FAILED")
    events = follow(service, FeedQuery(cursor="no cursor"))
    with pytest.raises(InvalidRequest):
        next(iter(events))
    events.stop()
