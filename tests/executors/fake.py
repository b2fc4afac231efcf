"""An in-memory service as the engine sees it, whose jobs end when the test says so."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Self

from balsam_exec.apps.payload import dump
from balsam_exec.model.apps import AppRecord, AppSpec
from balsam_exec.model.base import MAX_ENTITY, now
from balsam_exec.model.errors import InvalidRequest, ServiceUnavailable
from balsam_exec.model.events import Feed, FeedEvent, Kind
from balsam_exec.model.jobs import JobCreated, JobSpec, Killed, Result
from balsam_exec.model.queries import FeedQuery
from balsam_exec.model.states import JobState

BAD_WORKDIR = "bad"
BAD_APP = "bad"


class FakeService:
    max_entity = MAX_ENTITY

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.jobs: dict[int, JobState] = {}
        self.events: list[FeedEvent] = []
        self.batches: list[int] = []  #: the sizes of the requests to create jobs
        self.keys: set[str] = set()
        self.specs: dict[int, JobSpec] = {}
        self.apps: list[str] = []  #: names, in order of registration; the id is the position + 100
        self.away = 0  #: so many of the next requests fail
        self.answer = threading.Event()  #: cleared: submissions are stored but not answered yet
        self.answer.set()
        self.closed = False
        self.asked = 0  #: where the last request to the feed started
        self.following = False  #: whether there was any
        self.query: FeedQuery | None = None  #: the last one

    def sibling(self) -> Self:
        return self

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()

    def create_jobs(self, specs: Sequence[JobSpec], key: str | None = None) -> list[JobCreated]:
        with self.changed:
            self._reach()
            if any(spec.workdir == BAD_WORKDIR for spec in specs):
                raise InvalidRequest("a bad job")
            assert key is not None
            assert key not in self.keys
            self.keys.add(key)
            self.batches.append(len(specs))
            created = [JobCreated(id=len(self.jobs) + i + 1, state=JobState.PREPROCESSED) for i in range(len(specs))]
            self.jobs.update({job.id: job.state for job in created})
            self.specs.update({job.id: spec for job, spec in zip(created, specs, strict=True)})
            self.changed.notify_all()
        assert self.answer.wait(30)
        return created

    def put_app(self, spec: AppSpec) -> AppRecord:
        with self.changed:
            self._reach()
            if spec.name == BAD_APP:
                raise InvalidRequest("a bad app")
            self.apps.append(spec.name)
            moment = now()
            return AppRecord(
                **spec.model_dump(), id=len(self.apps) + 99, digest=spec.name, created=moment, last_update=moment
            )

    def cancel_jobs(self, ids: Iterable[int]) -> list[int]:
        with self.changed:
            gone = [i for i in ids if self.jobs[i] is JobState.PREPROCESSED]
        for job_id in gone:
            self.move(job_id, JobState.USER_KILLED)
        return gone

    def kill_jobs(self, ids: Iterable[int]) -> Killed:
        wanted = list(ids)
        killed = self.cancel_jobs(wanted)
        return Killed(killed=killed, ordered=[i for i in wanted if self.jobs[i] is JobState.RUNNING])

    def results(self, ids: Iterable[int]) -> dict[int, Result]:
        return {i: Result(ok=True, value=dump(i)) for i in ids}

    def feed(self, query: FeedQuery) -> Feed:
        with self.changed:
            self._reach()
            if query.cursor is None:
                return Feed(cursor=str(len(self.events)), events=[])
            start = self.asked = int(query.cursor)
            self.following = True
            self.query = query
            self.changed.notify_all()
            self.changed.wait_for(lambda: len(self.events) > start or self.closed, timeout=query.timeout)
            if self.closed:
                raise ServiceUnavailable("closed")
            return Feed(cursor=str(len(self.events)), events=self.events[start:])

    def _reach(self) -> None:
        if self.away:
            self.away -= 1
            raise ServiceUnavailable("away")

    # -- the other side ----------------------------------------------------------------------------------

    def wait_jobs(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.jobs) >= count, timeout=30)

    def move(self, job_id: int, state: JobState, result: Result | None = None) -> None:
        with self.changed:
            before, self.jobs[job_id] = self.jobs[job_id], state
            event = FeedEvent(
                id=len(self.events) + 1,
                kind=Kind.JOB,
                subject_id=job_id,
                from_state=before,
                to_state=state,
                timestamp=now(),
                result=result,
            )
            self.events.append(event)
            self.changed.notify_all()

    def finish(self, job_id: int, value: object) -> None:
        self.move(job_id, JobState.RUNNING)
        self.move(job_id, JobState.JOB_FINISHED, Result(ok=True, value=dump(value)))
