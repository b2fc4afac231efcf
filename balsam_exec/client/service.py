"""`Service`: the routes of the service as typed calls, one method each. No state but the connection.

Methods that list take a query of `balsam_exec.model.queries`, or its fields as keywords:
`service.jobs(state="FAILED", num_nodes__lte=128, tags={"kind": "md"}, limit=10)`.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError

from balsam_exec.client.lookups import adapter, build, key_of_chunk, url_params
from balsam_exec.client.transport import DEADLINE, READ_TIMEOUT, Transport
from balsam_exec.model.apps import AppRecord, AppSpec
from balsam_exec.model.auth import NewToken, TokenRecord, TokenSpec, UserRecord
from balsam_exec.model.backlog import Backlog, BacklogQuery
from balsam_exec.model.base import MAX_BULK, MAX_ENTITY, MIN_ENTITY_LIMIT, Count, Page
from balsam_exec.model.batch_jobs import BatchJobPatch, BatchJobRecord, BatchJobSpec
from balsam_exec.model.errors import InvalidRequest, TooLarge
from balsam_exec.model.events import EventRecord, Feed
from balsam_exec.model.explain import Explanation
from balsam_exec.model.files import DEFAULT_CHUNK, FileAnswer, FileChunk, FileRequest, FileRequestQuery, ReadRequest
from balsam_exec.model.hooks import HookQuery, HookReport, HookReports, HooksRecorded, HookWork, Visit
from balsam_exec.model.jobs import (
    Cancelled,
    CancelRequest,
    JobBulkPatch,
    JobCreated,
    JobPatch,
    JobRecord,
    JobSpec,
    Killed,
    KillRequest,
    Result,
    StateCount,
)
from balsam_exec.model.queries import (
    AppQuery,
    BatchJobQuery,
    EventQuery,
    FeedQuery,
    JobQuery,
    Query,
    SessionQuery,
    SiteQuery,
    TransferQuery,
)
from balsam_exec.model.sessions import (
    Acquired,
    AcquireRequest,
    Heartbeat,
    LeasedJob,
    Report,
    ReportBatch,
    SessionOrders,
    SessionRecord,
    SessionSpec,
)
from balsam_exec.model.sites import AgentBeat, SitePatch, SiteRecord, SiteSpec
from balsam_exec.model.transfers import TransferBulkPatch, TransferPatch, TransferRecord

if TYPE_CHECKING:
    from balsam_exec.client.lane import Lane

T = TypeVar("T")

#: Jobs and bytes in one request to create some; more are sent in several.
CHUNK_JOBS = 2000
CHUNK_BYTES = 8 * 1024 * 1024
#: Ids in one URL.
CHUNK_IDS = 500
#: What a long poll may take beyond the time it asked for.
GRACE = 30.0


class Health(BaseModel):
    status: str
    version: str
    database: str = ""
    max_entity: int = MAX_ENTITY  #: the largest serialized entity that it takes, in bytes


class Service:
    """One service, as one user. Thread-safe, fork-safe, picklable; equal to any other of the same URL and token."""

    def __init__(
        self, url: str, token: str | None = None, *, default_site: str | None = None, deadline: float = DEADLINE
    ) -> None:
        """`deadline` is for how many seconds a request that may be repeated is tried while the service is away."""
        self.default_site = default_site
        self._token = token
        self._transport = Transport(url, token, deadline=deadline)

    @property
    def url(self) -> str:
        return self._transport.url

    def __repr__(self) -> str:
        return f"Service({self.url!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Service) and (self.url, self._token) == (other.url, other._token)

    def __hash__(self) -> int:
        return hash((self.url, self._token))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self.url, self._token, self.default_site, self._transport.deadline)

    def sibling(self) -> Service:
        """The same over connections of its own, so that closing it interrupts nobody else."""
        return _rebuilt(self.url, self._token, self.default_site, self._transport.deadline)

    def lane(self) -> Lane | None:
        """A short way for what is asked most often, if there is one to be had."""
        from balsam_exec.client.lane import Lane  # and with it websockets: only those who use it pay for it

        return Lane.open(self.url, self._token)

    def close(self) -> None:
        """Close the connections; calls in flight in other threads raise ServiceUnavailable."""
        self._transport.close()

    # --- the service itself, and who may use it

    def health(self, deadline: float | None = None) -> Health:
        return self._call(Health, "GET", "/health", deadline=deadline)

    @cached_property
    def max_entity(self) -> int:
        """The largest serialized entity that it takes, in bytes; asked for once."""
        return self.health().max_entity

    def check_entity(self, data: bytes, what: str) -> None:
        """Raise TooLarge if it would refuse an entity of this size; `what` names it."""
        # Every service takes what is small: most processes never have to ask.
        if len(data) > MIN_ENTITY_LIMIT and len(data) > self.max_entity:
            raise TooLarge.entity(what, len(data), self.max_entity)

    def login(self, username: str, password: str, token_name: str = "login") -> NewToken:
        """A new token; make a `Service(url, token)` with it. Raises NotAuthenticated."""
        # Not through the Login model: as a SecretStr the password would go out as asterisks.
        body = adapter(dict[str, str]).dump_json({"username": username, "password": password, "token_name": token_name})
        return self._call(NewToken, "POST", "/auth/login", body)

    def me(self) -> UserRecord:
        return self._call(UserRecord, "GET", "/auth/me")

    def tokens(self) -> list[TokenRecord]:
        return self._call(list[TokenRecord], "GET", "/auth/tokens")

    def create_token(self, spec: TokenSpec) -> NewToken:
        return self._call(NewToken, "POST", "/auth/tokens", _dump(spec))

    def revoke_token(self, token_id: int) -> None:
        self._tell("DELETE", f"/auth/tokens/{token_id}")

    # --- sites

    def sites(self, query: Query | None = None, **lookups: Any) -> Page[SiteRecord]:
        return self._call(Page[SiteRecord], "GET", "/sites", query=_query(SiteQuery, query, lookups))

    def create_site(self, spec: SiteSpec) -> SiteRecord:
        return self._call(SiteRecord, "POST", "/sites", _dump(spec))

    def site(self, site_id: int) -> SiteRecord:
        return self._call(SiteRecord, "GET", f"/sites/{site_id}")

    def patch_site(self, site_id: int, patch: SitePatch) -> SiteRecord:
        return self._call(SiteRecord, "PATCH", f"/sites/{site_id}", _dump(patch))

    def delete_site(self, site_id: int) -> None:
        self._tell("DELETE", f"/sites/{site_id}")

    def beat(self, site_id: int, sign: AgentBeat) -> SiteRecord:
        """An agent's sign of life, which takes the lease of the site or keeps it. Raises Conflict while another agent
        has it, with that as `detail["agent"]`."""
        return self._call(SiteRecord, "PUT", f"/sites/{site_id}/agent", _dump(sign))

    def release_site(self, site_id: int, holder: str, deadline: float | None = None) -> None:
        """The agent of this name has ended."""
        self._tell("DELETE", f"/sites/{site_id}/agent/{holder}", deadline=deadline)

    # --- apps

    def apps(self, query: Query | None = None, **lookups: Any) -> Page[AppRecord]:
        return self._call(Page[AppRecord], "GET", "/apps", query=_query(AppQuery, query, lookups))

    def put_app(self, spec: AppSpec) -> AppRecord:
        """Create the app, or replace the one of the same site and name."""
        return self._call(AppRecord, "PUT", "/apps", _dump(spec))

    def app(self, app_id: int) -> AppRecord:
        return self._call(AppRecord, "GET", f"/apps/{app_id}")

    def rename_app(self, app_id: int, name: str) -> AppRecord:
        return self._call(AppRecord, "PATCH", f"/apps/{app_id}", adapter(dict[str, str]).dump_json({"name": name}))

    def delete_app(self, app_id: int) -> None:
        self._tell("DELETE", f"/apps/{app_id}")

    # --- jobs

    def create_jobs(self, specs: Sequence[JobSpec], key: str | None = None) -> list[JobCreated]:
        """Create jobs, in as many requests as their size asks for; the answers are in the order of `specs`.

        With the same `key` (and the same specs) the same jobs are answered again, never made twice. Not atomic over
        several requests: on an error call again with the same key to continue.
        """
        key = key or uuid.uuid4().hex
        created: list[JobCreated] = []
        for start in range(0, len(specs), CHUNK_JOBS):
            created += self._create_chunk(specs[start : start + CHUNK_JOBS], key, start)
        return created

    def _create_chunk(self, specs: Sequence[JobSpec], key: str, start: int) -> list[JobCreated]:
        body = _dump(list(specs), list[JobSpec])
        if len(body) > CHUNK_BYTES and len(specs) > 1:
            half = len(specs) // 2
            return self._create_chunk(specs[:half], key, start) + self._create_chunk(specs[half:], key, start + half)
        return self._call(list[JobCreated], "POST", "/jobs", body, key=key_of_chunk(key, start, len(specs)))

    def jobs(self, query: Query | None = None, **lookups: Any) -> Page[JobRecord]:
        return self._call(Page[JobRecord], "GET", "/jobs", query=_query(JobQuery, query, lookups))

    def job(self, job_id: int) -> JobRecord:
        return self._call(JobRecord, "GET", f"/jobs/{job_id}")

    def explain_job(self, job_id: int) -> Explanation:
        """Why the job is in its state: what it waits for, where it runs, how it ended."""
        return self._call(Explanation, "GET", f"/jobs/{job_id}/explain")

    def count_jobs(self, query: Query | None = None, **lookups: Any) -> int:
        return self._call(Count, "GET", "/jobs/count", query=_query(JobQuery, query, lookups)).count

    def job_states(self, query: Query | None = None, **lookups: Any) -> list[StateCount]:
        return self._call(list[StateCount], "GET", "/jobs/states", query=_query(JobQuery, query, lookups))

    def patch_job(self, job_id: int, patch: JobPatch) -> JobRecord:
        return self._call(JobRecord, "PATCH", f"/jobs/{job_id}", _dump(patch))

    def update_jobs(self, query: Query, patch: JobPatch) -> int:
        """Change all jobs that match; all or none."""
        return self._call(Count, "PATCH", "/jobs", _dump(patch), query=query).count

    def patch_jobs(self, patches: Sequence[JobBulkPatch]) -> int:
        """Change each job in its own way; all or none."""
        body = _dump(list(patches), list[JobBulkPatch])
        return self._call(Count, "PATCH", "/jobs/bulk", body).count

    def delete_job(self, job_id: int) -> None:
        self._tell("DELETE", f"/jobs/{job_id}")

    def delete_jobs(self, query: Query) -> int:
        """Delete all jobs that match; a query without any filter is refused."""
        return self._call(Count, "DELETE", "/jobs", query=query).count

    def cancel_jobs(self, ids: Iterable[int]) -> list[int]:
        """Those of the jobs that had not started and are now USER_KILLED."""
        body = _dump(CancelRequest(ids=list(ids)))
        return self._call(Cancelled, "POST", "/jobs/cancel", body, idempotent=True).job_ids

    def kill_jobs(self, ids: Iterable[int]) -> Killed:
        """Kill jobs that have not ended. Not atomic for more than a bulk; may be repeated."""
        killed, ordered, over = [], [], []
        for some in _chunks(list(ids), MAX_BULK):
            found = self._call(Killed, "POST", "/jobs/kill", _dump(KillRequest(ids=list(some))), idempotent=True)
            killed += found.killed
            ordered += found.ordered
            over += found.over
        return Killed(killed=killed, ordered=ordered, over=over)

    def kill_matching(self, query: Query) -> Killed:
        """Kill all jobs that match and have not ended; a query without any filter is refused."""
        return self._call(Killed, "POST", "/jobs/kill", query=query, idempotent=True)

    def results(self, ids: Iterable[int]) -> dict[int, Result]:
        """How those of the jobs that have ended did."""
        found: dict[int, Result] = {}
        for some in _chunks(list(ids), CHUNK_IDS):
            params = [("id", str(job_id)) for job_id in some]
            found.update(self._call(dict[int, Result], "GET", "/jobs/results", params=params))
        return found

    # --- files of jobs

    def read_file(
        self, job_id: int, path: str = "", *, offset: int = 0, length: int = DEFAULT_CHUNK, timeout: float = 30
    ) -> FileChunk:
        """A part of a file of the job's workdir ("": its stdout), read by the agent of its site.

        `balsam_exec.client.files` reads what is on this machine without asking. Raises NotFound for a file that is not
        there (yet), Forbidden, InvalidRequest, SiteUnreachable when the agent does not answer in `timeout` seconds.
        """
        request = build(ReadRequest, {"path": path, "offset": offset, "length": length, "timeout": timeout})
        path = f"/jobs/{job_id}/read"
        return self._call(FileChunk, "POST", path, _dump(request), idempotent=True, timeout=timeout + GRACE)

    def file_requests(self, site_id: int, query: FileRequestQuery, deadline: float | None = None) -> list[FileRequest]:
        """What the site's agent is asked to read; waits up to `query.timeout` seconds for the first."""
        path = f"/sites/{site_id}/file-requests"
        patience = query.timeout + GRACE
        return self._call(list[FileRequest], "GET", path, query=query, timeout=patience, deadline=deadline)

    def answer_file_request(self, request_id: int, answer: FileAnswer) -> None:
        """Raises NotFound when nobody waits for it any more."""
        self._tell("PUT", f"/file-requests/{request_id}", _dump(answer))

    # --- hooks, for the agent of a site

    def hook_work(self, site_id: int, query: HookQuery, deadline: float | None = None) -> HookWork:
        """Jobs that wait for their site; waits up to `query.timeout` seconds for the first that is not known."""
        path = f"/sites/{site_id}/hooks/work"
        patience = query.timeout + GRACE
        return self._call(HookWork, "POST", path, _dump(query), idempotent=True, timeout=patience, deadline=deadline)

    def report_hooks(self, site_id: int, reports: Sequence[HookReport], deadline: float | None = None) -> list[Visit]:
        """The visits that were over, whose reports were dropped. All the others are recorded, or nothing."""
        path = f"/sites/{site_id}/hooks/reports"
        body = _dump(HookReports(reports=list(reports)))
        return self._call(HooksRecorded, "POST", path, body, idempotent=True, deadline=deadline).late

    # --- allocations

    def backlog(self, site_id: int, query: BacklogQuery | None = None) -> Backlog:
        """The site's runnable jobs and those that launchers hold, counted by what they need."""
        return self._call(Backlog, "GET", f"/sites/{site_id}/backlog", query=query or BacklogQuery())

    def batch_jobs(self, query: Query | None = None, **lookups: Any) -> Page[BatchJobRecord]:
        return self._call(Page[BatchJobRecord], "GET", "/batch-jobs", query=_query(BatchJobQuery, query, lookups))

    def create_batch_job(self, spec: BatchJobSpec) -> BatchJobRecord:
        return self._call(BatchJobRecord, "POST", "/batch-jobs", _dump(spec))

    def batch_job(self, batch_job_id: int) -> BatchJobRecord:
        return self._call(BatchJobRecord, "GET", f"/batch-jobs/{batch_job_id}")

    def patch_batch_job(self, batch_job_id: int, patch: BatchJobPatch) -> BatchJobRecord:
        return self._call(BatchJobRecord, "PATCH", f"/batch-jobs/{batch_job_id}", _dump(patch))

    def delete_batch_job(self, batch_job_id: int) -> None:
        self._tell("DELETE", f"/batch-jobs/{batch_job_id}")

    # --- a launcher's session

    def sessions(self, query: Query | None = None, **lookups: Any) -> Page[SessionRecord]:
        return self._call(Page[SessionRecord], "GET", "/sessions", query=_query(SessionQuery, query, lookups))

    def open_session(self, spec: SessionSpec) -> SessionRecord:
        return self._call(SessionRecord, "POST", "/sessions", _dump(spec))

    def acquire(self, session_id: int, request: AcquireRequest, key: str | None = None) -> list[LeasedJob]:
        """Lease runnable jobs; waits up to `request.timeout` seconds for the first.

        With the same `key` the last answer is given again, in case it was lost.
        """
        path = f"/sessions/{session_id}/acquire"
        patience = request.timeout + GRACE
        key = key or uuid.uuid4().hex
        return self._call(Acquired, "POST", path, _dump(request), key=key, timeout=patience).jobs

    def report(self, session_id: int, reports: Sequence[Report], widen: bool = False) -> None:
        """Raises StaleLease, with `detail["job_ids"]`, when some leases are over; then none of it was recorded.

        With `widen` an acquire of the session that waits is answered, so that it can ask for more.
        """
        body = ReportBatch(reports=list(reports), widen=widen).model_dump_json(exclude_defaults=True).encode()
        self._tell("POST", f"/sessions/{session_id}/report", body, idempotent=True)

    def heartbeat(self, session_id: int, heard: Heartbeat | None = None) -> SessionOrders:
        """Extend the session; waits up to `heard.timeout` seconds for an order that is not in `heard.killing`."""
        heard = heard or Heartbeat()
        patience = heard.timeout + GRACE
        return self._call(SessionOrders, "PUT", f"/sessions/{session_id}", _dump(heard), timeout=patience)

    def close_session(self, session_id: int) -> None:
        self._tell("DELETE", f"/sessions/{session_id}")

    # --- transfers

    def transfers(self, query: Query | None = None, **lookups: Any) -> Page[TransferRecord]:
        return self._call(Page[TransferRecord], "GET", "/transfers", query=_query(TransferQuery, query, lookups))

    def transfer(self, transfer_id: int) -> TransferRecord:
        return self._call(TransferRecord, "GET", f"/transfers/{transfer_id}")

    def patch_transfer(self, transfer_id: int, patch: TransferPatch) -> TransferRecord:
        return self._call(TransferRecord, "PATCH", f"/transfers/{transfer_id}", _dump(patch))

    def patch_transfers(self, patches: Sequence[TransferBulkPatch]) -> int:
        body = adapter(list[TransferBulkPatch]).dump_json(list(patches), exclude_defaults=True)
        return self._call(Count, "PATCH", "/transfers/bulk", body).count

    # --- what happened

    def events(self, query: Query | None = None, **lookups: Any) -> Page[EventRecord]:
        return self._call(Page[EventRecord], "GET", "/events", query=_query(EventQuery, query, lookups))

    def feed(self, query: FeedQuery, deadline: float | None = None) -> Feed:
        """One long poll; `balsam_exec.client.feed.follow` makes a stream of them."""
        patience = query.timeout + GRACE
        return self._call(Feed, "GET", "/events/feed", query=query, timeout=patience, deadline=deadline)

    # --- the two ways to ask

    def _call(
        self,
        answer: type[T],
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        query: BaseModel | None = None,
        params: Iterable[tuple[str, str]] = (),
        key: str | None = None,
        idempotent: bool = False,
        timeout: float = READ_TIMEOUT,
        deadline: float | None = None,
    ) -> T:
        got = self._transport.request(
            method,
            path,
            params=params if query is None else url_params(query),
            body=body,
            key=key,
            idempotent=idempotent,
            timeout=timeout,
            deadline=deadline,
        )
        value: T = adapter(answer).validate_json(got)
        return value

    def _tell(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        idempotent: bool = False,
        deadline: float | None = None,
    ) -> None:
        self._transport.request(method, path, body=body, idempotent=idempotent, deadline=deadline)


def _rebuilt(url: str, token: str | None, default_site: str | None, deadline: float) -> Service:
    return Service(url, token, default_site=default_site, deadline=deadline)


def _query(kind: type[Query], query: Query | None, lookups: dict[str, Any]) -> Query:
    if query is None:
        return build(kind, lookups)
    if lookups:
        raise TypeError("give a query or its fields as keywords, not both")
    return query


def _dump(body: Any, kind: Any = None) -> bytes:
    """What differs from the defaults, which the service has too. Raises InvalidRequest for what is no JSON."""
    try:
        return adapter(kind or type(body)).dump_json(body, exclude_defaults=True)
    except PydanticSerializationError as error:
        raise InvalidRequest(f"what was to be sent is no JSON: {error}") from None


def _chunks(items: Sequence[T], size: int) -> Iterable[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
