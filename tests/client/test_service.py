"""Every typed call against the real service."""

from __future__ import annotations

import inspect
import time
import uuid
from typing import Any

import pytest

from balsam_exec.client import service as module
from balsam_exec.client.service import Service
from balsam_exec.model.allowed import QueueLimits
from balsam_exec.model.apps import AppRecord, AppSpec
from balsam_exec.model.auth import TokenSpec
from balsam_exec.model.base import now
from balsam_exec.model.batch_jobs import BatchJobPatch, BatchJobSpec
from balsam_exec.model.errors import (
    IllegalTransition,
    InvalidRequest,
    NotAuthenticated,
    NotFound,
    ParameterError,
    StaleLease,
)
from balsam_exec.model.jobs import JobBulkPatch, JobPatch, JobSpec, Result
from balsam_exec.model.queries import JobQuery
from balsam_exec.model.sessions import AcquireRequest, LeasedJob, Report, SessionSpec
from balsam_exec.model.sites import SitePatch, SiteRecord
from balsam_exec.model.states import BatchJobState, JobState
from tests.client.scripted import Answer, ScriptedServer
from tests.support.services import LiveService


def spec(app: AppRecord, i: int = 0, **more: Any) -> JobSpec:
    return JobSpec(app_id=app.id, workdir=f"w/{i}", **more)


def test_health_and_me(service: Service) -> None:
    health = service.health()
    assert (health.status, health.database) == ("ok", "sqlite")
    assert service.me().username


def test_tokens(live: LiveService, service: Service) -> None:
    made = service.create_token(TokenSpec(name="mine", expires_in_sec=60))
    assert made.id in {token.id for token in service.tokens()}
    mine = Service(live.url, made.token)
    assert mine.me() == service.me()
    service.revoke_token(made.id)
    with pytest.raises(NotAuthenticated) as caught:
        mine.me()
    assert made.token not in str(caught.value)
    mine.close()


def test_login_with_a_wrong_password(service: Service) -> None:
    with pytest.raises(NotAuthenticated) as caught:
        service.login("nobody", "hunter2")
    assert "hunter2" not in str(caught.value)


def test_login_sends_the_password_itself() -> None:
    token = b'{"id": 1, "name": "t", "created": "2026-01-01T00:00:00Z", "expires": null, "token": "abc"}'
    with ScriptedServer(Answer(body=token)) as server:
        service = Service(server.url)
        assert service.login("me", "hunter2").token == "abc"
        service.close()
    assert b'"password":"hunter2"' in server.asked[0].body
    assert "Authorization" not in server.asked[0].headers


def test_sites(service: Service, site: SiteRecord) -> None:
    assert service.sites(name=site.name).results == [site]
    queues = {"q": QueueLimits(max_nodes=2)}
    changed = service.patch_site(site.id, SitePatch(hostname="h", allowed_queues=queues, refresh=True))
    assert (changed.hostname, changed.allowed_queues) == ("h", queues)
    assert changed.last_refresh is not None
    assert service.site(site.id) == changed
    service.delete_site(site.id)
    with pytest.raises(NotFound):
        service.site(site.id)


def test_apps(service: Service, site: SiteRecord, app: AppRecord) -> None:
    again = service.put_app(AppSpec(site_id=site.id, name="Echo", command_template="echo 2"))
    assert again.id == app.id
    assert again.digest != app.digest
    assert service.rename_app(app.id, "Say").name == "Say"
    assert service.apps(site_id=site.id, name__contains="a").results == [service.app(app.id)]
    payload = bytes(range(256))
    python = service.put_app(AppSpec(site_id=site.id, name="Py", hooks=["run"], payload=payload))
    assert service.app(python.id).payload == payload
    service.delete_app(app.id)
    with pytest.raises(NotFound):
        service.app(app.id)


def test_jobs_are_created_once_for_one_key(service: Service, app: AppRecord) -> None:
    key = uuid.uuid4().hex
    specs = [spec(app, i, tags={"i": str(i)}) for i in range(5)]
    first = service.create_jobs(specs, key)
    assert service.create_jobs(specs, key) == first
    assert service.create_jobs(specs) != first
    assert service.count_jobs(app_id=app.id) == 10
    assert [job.workdir for job in service.jobs(id=[made.id for made in first]).results] == [s.workdir for s in specs]
    assert service.create_jobs([]) == []


def test_many_and_large_jobs_go_in_several_requests(
    service: Service, app: AppRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_JOBS", 7)
    monkeypatch.setattr(module, "CHUNK_BYTES", 3000)
    specs = [spec(app, i, data={"fill": "x" * (1000 if i == 3 else 10)}) for i in range(20)]
    specs[11] = spec(app, 11, data={"fill": "x" * 5000})  # more than a request should have, alone
    key = uuid.uuid4().hex
    made = service.create_jobs(specs, key)
    assert service.create_jobs(specs, key) == made
    assert [service.job(one.id).workdir for one in made] == [one.workdir for one in specs]


def test_a_wrong_job_is_refused_by_the_service(service: Service, app: AppRecord) -> None:
    with pytest.raises(ParameterError):
        service.create_jobs([spec(app, parameters={"y": 1})])
    assert service.count_jobs(app_id=app.id) == 0


def test_jobs_are_changed_one_by_one_by_query_and_in_bulk(service: Service, app: AppRecord) -> None:
    a, b, c = (made.id for made in service.create_jobs([spec(app, i) for i in range(3)]))
    assert service.patch_job(a, JobPatch(data={"n": None})).data == {"n": None}
    assert service.update_jobs(JobQuery.model_validate({"id": [a, b]}), JobPatch(num_nodes=2)) == 2
    assert service.patch_jobs([JobBulkPatch(id=b, tags={"k": "v"}), JobBulkPatch(id=c, data={"x": None})]) == 2
    assert service.job(b).tags == {"k": "v"}
    assert service.job(c).data == {"x": None}
    with pytest.raises(IllegalTransition):
        service.patch_jobs([JobBulkPatch(id=a, tags={"k": "w"}), JobBulkPatch(id=b, state=JobState.RUNNING)])
    assert service.job(a).tags == {}
    assert {item.state: item.count for item in service.job_states(app_id=app.id)} == {JobState.PREPROCESSED: 3}
    assert service.cancel_jobs([a, b]) == [a, b]
    assert service.cancel_jobs([a]) == []
    service.delete_job(a)
    assert service.delete_jobs(JobQuery.model_validate({"id": [b, c]})) == 2
    with pytest.raises(InvalidRequest):
        service.delete_jobs(JobQuery())


def test_a_query_or_its_fields_but_not_both(service: Service) -> None:
    with pytest.raises(TypeError):
        service.jobs(JobQuery(), id=3)
    with pytest.raises(InvalidRequest, match="workdir__contains"):
        service.jobs(colour="red")


def leased(service: Service, session: int, **request: Any) -> list[LeasedJob]:
    return service.acquire(session, AcquireRequest(max_jobs=10, max_nodes=1, **request))


def test_a_launchers_life(service: Service, site: SiteRecord, app: AppRecord) -> None:
    session = service.open_session(SessionSpec(site_id=site.id, ttl_sec=30))
    assert service.sessions(site_id=site.id).results == [session]
    assert leased(service, session.id) == []
    [done, failed, free] = [made.id for made in service.create_jobs([spec(app, i) for i in range(3)])]
    jobs = {job.id: job for job in leased(service, session.id, timeout=10)}
    assert set(jobs) == {done, failed, free}

    def report(job: int, state: JobState | None, result: Result | None = None) -> Report:
        return Report(job_id=job, epoch=jobs[job].epoch, state=state, timestamp=now(), result=result)

    reports = [
        report(done, JobState.RUNNING),
        report(done, JobState.RUN_DONE, Result(ok=True, value=b"\x00\xff", return_code=0)),
        report(failed, JobState.RUNNING),
        report(failed, JobState.RUN_ERROR, Result(ok=False, error="boom", reason="exit", return_code=2)),
        report(free, None),
    ]
    service.report(session.id, reports)
    service.report(session.id, reports)  # the first answer was lost
    results = service.results([done, failed, free])
    assert set(results) == {done, failed}
    assert (results[done].value, results[failed].error) == (b"\x00\xff", "boom")
    assert service.job(free).state is JobState.PREPROCESSED
    stale = Report(job_id=done, epoch=jobs[done].epoch + 1, state=JobState.RUNNING, timestamp=now())
    with pytest.raises(StaleLease) as caught:
        service.report(session.id, [stale])
    assert caught.value.detail["job_ids"] == [done]
    assert service.heartbeat(session.id).expires > session.expires
    service.close_session(session.id)
    with pytest.raises(NotFound):
        service.heartbeat(session.id)


def test_acquire_waits_for_work(service: Service, site: SiteRecord) -> None:
    session = service.open_session(SessionSpec(site_id=site.id))
    started = time.monotonic()
    assert leased(service, session.id, timeout=0.3) == []
    assert time.monotonic() - started >= 0.3


def test_batch_jobs(service: Service, site: SiteRecord) -> None:
    made = service.create_batch_job(BatchJobSpec(site_id=site.id, num_nodes=1, wall_time_min=1))
    changed = service.patch_batch_job(made.id, BatchJobPatch(state=BatchJobState.QUEUED, scheduler_id="9"))
    assert service.batch_jobs(site_id=site.id, state="queued").results == [changed]
    assert service.batch_job(made.id) == changed
    service.patch_batch_job(made.id, BatchJobPatch(state=BatchJobState.FINISHED))
    service.delete_batch_job(made.id)
    with pytest.raises(NotFound):
        service.batch_job(made.id)


def test_a_long_poll_is_waited_for_longer_than_it_lasts() -> None:
    feed = b'{"cursor": "c", "events": []}'
    with ScriptedServer(Answer(body=feed)) as server:
        service = Service(server.url)
        timeouts = []
        request = service._transport.request

        def noting(*args: Any, **kwargs: Any) -> bytes:
            timeouts.append(kwargs["timeout"])
            return request(*args, **kwargs)

        service._transport.request = noting  # type: ignore[method-assign]
        service.feed(module.FeedQuery(timeout=50))
        service.close()
    assert timeouts == [50 + module.GRACE]


def test_every_public_method_says_what_it_answers() -> None:
    for name, method in inspect.getmembers(Service, inspect.isfunction):
        if not name.startswith("_"):
            assert "return" in method.__annotations__, name
