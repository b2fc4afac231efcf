"""How a deployment is: the health of each part."""

from __future__ import annotations

import threading
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from balsam_exec.client.config import load_credentials
from balsam_exec.client.service import Service
from balsam_exec.embedded.layout import Layout, read_json, recorded
from balsam_exec.model.errors import BalsamError, ConfigurationError
from balsam_exec.model.sites import SiteRecord
from balsam_exec.model.states import BATCH_JOB_ENDED

#: Seconds for the service to answer all that we ask.
PATIENCE = 5.0


@dataclass(frozen=True)
class Part:
    name: str
    ok: bool
    detail: str


@dataclass
class Status:
    """`healthy` when every part is; `url` is None when no service is configured."""

    url: str | None = None
    parts: list[Part] = field(default_factory=list)
    allocations: dict[str, int] = field(default_factory=dict)  #: those that have not ended, by state
    jobs: dict[str, int] = field(default_factory=dict)  #: by state

    @property
    def healthy(self) -> bool:
        return bool(self.parts) and all(part.ok for part in self.parts)

    def as_json(self) -> dict[str, Any]:
        return {"healthy": self.healthy, **asdict(self)}


def status(home: Path) -> Status:
    """Ask every part of the deployment at `home`, and of the service that this user has configured."""
    found = Status()
    state = read_json(Layout(home).state_file)
    embedded_url = state.get("url")
    try:
        credentials = load_credentials()
    except ConfigurationError as error:
        found.parts.append(Part("service", False, str(error)))
        return found
    found.url = credentials.url
    embedded = embedded_url == credentials.url
    if embedded or Layout(home).config_file.exists():
        found.parts.append(_supervisor(state))
    service = Service(credentials.url, credentials.token.get_secret_value(), deadline=0)
    # Its socket takes our requests also when no service is there to answer them.
    patience = threading.Timer(PATIENCE, service.close)
    patience.start()
    try:
        found.parts.append(_service(service, state if embedded else {}))
        if found.parts[-1].ok:
            sites = service.sites(limit=1000).results
            if embedded:
                found.parts.append(_agent(state, sites))
            else:
                found.parts += [_site(site) for site in sites]
            _count(service, found)
    except BalsamError as error:
        found.parts.append(Part("account", False, str(error)))
    finally:
        patience.cancel()
        service.close()
    return found


def _supervisor(state: dict[str, Any]) -> Part:
    process = recorded(state, "supervisor")
    if process is None or not process.alive:
        return Part("supervisor", False, "not running: start it with `balsam up`")
    restarts = {part: state.get(f"{part}_restarts", 0) for part in ("service", "agent")}
    told = ", ".join(f"{part} restarted {count} times" for part, count in restarts.items() if count > 0)
    return Part("supervisor", True, f"pid {process.pid}{f', {told}' if told else ''}")


def _service(service: Service, state: dict[str, Any]) -> Part:
    started = time.perf_counter()
    try:
        health = service.health(deadline=0)
    except BalsamError as error:
        waited = time.perf_counter() - started
        return Part("service", False, f"no answer in {waited:.0f} s" if waited > PATIENCE - 1 else str(error))
    milliseconds = (time.perf_counter() - started) * 1000
    database = state.get("database") or health.database
    return Part("service", True, f"{service.url}, version {health.version}, {database}, {milliseconds:.0f} ms")


def _agent(state: dict[str, Any], sites: list[SiteRecord]) -> Part:
    """The agent of the deployment's own site; the sites of other machines have theirs."""
    process = recorded(state, "agent")
    site = next((site for site in sites if site.id == (state.get("ready") or {}).get("site_id")), None)
    if process is None or not process.alive or site is None:
        return Part("agent", False, "not running; it is being restarted")
    heard = _site(site)
    return Part("agent", heard.ok, f"pid {process.pid}, {heard.name}, {heard.detail}")


def _site(site: SiteRecord) -> Part:
    name = f"site {site.name}"
    if site.last_refresh is None:
        return Part(name, False, f"{site.hostname}:{site.path}, its agent was never heard of")
    age = max(0.0, (datetime.now(UTC) - site.last_refresh).total_seconds())
    troubled = [part.name for part in site.agent.parts if part.state == "retrying"] if site.agent else []
    trouble = f", trouble with {', '.join(troubled)}: see `balsam site status`" if troubled else ""
    told = f"{site.hostname}:{site.path}, agent last heard {age:.0f} s ago{trouble}"
    return Part(name, site.active and not troubled, told)


def _count(service: Service, found: Status) -> None:
    for batch_job in service.batch_jobs(state__ne=sorted(BATCH_JOB_ENDED), limit=1000).results:
        found.allocations[batch_job.state] = found.allocations.get(batch_job.state, 0) + 1
    found.jobs = {item.state.value: item.count for item in service.job_states() if item.count}
