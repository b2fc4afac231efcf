"""A lane to a real service: who asks is answered by whoever reads, or told that it ended."""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from balsam_exec.client.lane import SHORT, Lane, path_of_feed
from balsam_exec.client.service import Service
from balsam_exec.model.apps import AppRecord
from balsam_exec.model.base import now
from balsam_exec.model.errors import NotFound, ServiceUnavailable
from balsam_exec.model.events import Feed
from balsam_exec.model.jobs import JobSpec
from balsam_exec.model.queries import FeedQuery
from balsam_exec.model.sessions import Acquired, AcquireRequest, Report, SessionSpec
from balsam_exec.model.sites import SiteRecord
from balsam_exec.model.states import JobState
from tests.support.services import LiveService


@pytest.fixture
def live_alone(tmp_path: Path) -> Iterator[LiveService]:
    with LiveService(f"sqlite:///{tmp_path / 'balsam.db'}", tmp_path) as service:
        yield service


@pytest.fixture
def lane(service: Service) -> Iterator[Lane]:
    lane = service.lane()
    assert lane is not None
    yield lane
    lane.close()
    while lane.read():
        pass


class Answers(list[Any]):
    """What came, in order."""

    def until(self, count: int, lane: Lane) -> list[Any]:
        while len(self) < count:
            assert lane.read()
        return self


def test_a_job_goes_its_way_over_a_lane(lane: Lane, service: Service, site: SiteRecord, app: AppRecord) -> None:
    session = service.open_session(SessionSpec(site_id=site.id))
    feed = path_of_feed(FeedQuery(site_id=[site.id], include_results=True, timeout=30))
    cursor = service.feed(FeedQuery()).cursor
    asked, answers = AcquireRequest(max_jobs=5, max_nodes=1, timeout=30), Answers()
    assert lane.acquire(session.id, asked, "key", answers.append)
    assert lane.follow(feed, cursor, answers.append)
    specs = [JobSpec(app_id=app.id, workdir="one")]
    assert lane.create_jobs(specs, "jobs", answers.append)
    found = {type(answer): answer for answer in answers.until(3, lane)}
    created, acquired, told = found[list], found[Acquired], found[Feed]
    assert [job.id for job in acquired.jobs] == [created[0].id]
    assert [event.to_state for event in told.events] == [JobState.PREPROCESSED]
    # With the same keys HTTP gives the same.
    assert service.create_jobs(specs, "jobs") == created
    assert service.acquire(session.id, asked, "key") == acquired.jobs

    reports = [
        Report(job_id=created[0].id, epoch=acquired.jobs[0].epoch, state=state, timestamp=now())
        for state in (JobState.RUNNING, JobState.RUN_DONE)
    ]
    answers.clear()
    assert lane.report(session.id, reports, False, answers.append)
    assert None in answers.until(2, lane)
    assert {event.to_state for feed in answers if feed for event in feed.events} >= {JobState.JOB_FINISHED}
    assert service.job(created[0].id).state is JobState.JOB_FINISHED


def test_a_refusal_is_the_error_that_the_service_names(lane: Lane) -> None:
    answers = Answers()
    assert lane.create_jobs([JobSpec(app_id=10**9, workdir="w")], uuid.uuid4().hex, answers.append)
    assert isinstance(answers.until(1, lane)[0], NotFound)


def test_what_is_not_short_or_no_json_is_not_taken(lane: Lane, app: AppRecord) -> None:
    def never(_: Any) -> None:
        raise AssertionError

    long = JobSpec(app_id=app.id, workdir="w", arguments=b"x" * SHORT)
    assert not lane.create_jobs([long], "long", never)
    strange = JobSpec(app_id=app.id, workdir="w", data={"x": object()})
    assert not lane.create_jobs([strange], "strange", never)


def test_close_wakes_who_reads_and_tells_who_waits(service: Service) -> None:
    lane = service.lane()
    assert lane is not None
    answers = Answers()
    cursor = service.feed(FeedQuery()).cursor
    assert lane.follow(path_of_feed(FeedQuery(timeout=60, subject_id=[10**9])), cursor, answers.append)
    reader = threading.Thread(target=lambda: [None for _ in iter(lane.read, False)])
    reader.start()
    lane.close()
    reader.join(timeout=20)
    assert not reader.is_alive()
    assert [type(answer) for answer in answers] == [ServiceUnavailable]
    assert not lane.follow(path_of_feed(FeedQuery(timeout=60)), cursor, answers.append)


def test_the_end_of_the_service_is_the_end_of_the_lane(live_alone: LiveService) -> None:
    lane = live_alone.service.lane()
    assert lane is not None
    answers = Answers()
    cursor = live_alone.service.feed(FeedQuery()).cursor
    assert lane.follow(path_of_feed(FeedQuery(timeout=60)), cursor, answers.append)
    live_alone.kill()
    while lane.read():
        pass
    assert [type(answer) for answer in answers] == [ServiceUnavailable]


def test_a_forked_child_leaves_it_alone(lane: Lane, service: Service, site: SiteRecord) -> None:
    pid = os.fork()
    if pid == 0:
        taken = lane.follow(path_of_feed(FeedQuery(timeout=60)), "1", print)
        lane.close()
        os._exit(int(taken))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    answers = Answers()
    session = service.open_session(SessionSpec(site_id=site.id))
    assert lane.acquire(session.id, AcquireRequest(max_jobs=1, max_nodes=1), "key", answers.append)
    assert answers.until(1, lane)[0].jobs == []


def test_there_is_none_for_who_is_unknown(live: LiveService) -> None:
    assert Lane.open(live.url, "wrong") is None


def test_there_is_none_where_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert Lane.open(f"http://127.0.0.1:{port}", "token") is None


def test_there_is_none_at_services_that_know_nothing_of_lanes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"

        def refuse() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=refuse)
        thread.start()
        assert Lane.open(url, "token") is None
        thread.join(timeout=20)


def test_there_is_none_through_tls_or_a_proxy(live: LiveService, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Lane.open(live.url.replace("http:", "https:"), live.token) is None
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    assert Lane.open(live.url, live.token) is None
