"""The lease by which one agent at a time serves a site: at the service, and in the site's directory."""

from __future__ import annotations

import fcntl
import logging
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from balsam_exec.client.service import Service
from balsam_exec.model.errors import ConfigurationError, Conflict
from balsam_exec.model.sites import AgentBeat, AgentProcess, AgentRecord, PartStatus, SiteRecord
from balsam_exec.platform.settings import SiteDirectory
from balsam_exec.site.identity import has_ended
from balsam_exec.site.last_words import last_words

log = logging.getLogger(__name__)

#: Seconds that the service has to be told that the agent has ended.
_LAST_WORDS = 3.0


class Lease:
    """Held at the service, so that it keeps off agents on all machines, whatever file systems these share."""

    def __init__(self, me: AgentProcess) -> None:
        self._me = me
        self._holder = uuid.uuid4().hex

    def take(self, service: Service, site_id: int) -> SiteRecord:
        """Raises Conflict while another agent serves the site; one that is known to have ended is replaced."""
        try:
            return self.renew(service, site_id)
        except Conflict as error:
            other = AgentRecord.model_validate(error.detail["agent"])
            if not has_ended(other):
                raise
            log.warning("the agent that served this site, pid %s on %s, has ended", other.pid, other.hostname)
            return service.beat(site_id, self._sign(replaces=other.holder))

    def renew(self, service: Service, site_id: int, parts: Sequence[PartStatus] = ()) -> SiteRecord:
        """Raises Conflict when another agent has it now, NotFound when there is no such site any more."""
        return service.beat(site_id, self._sign(parts=list(parts)))

    def release(self, service: Service, site_id: int) -> None:
        """Tell that this agent has ended, if the service hears it soon; otherwise the lease just expires."""
        with last_words(service, _LAST_WORDS) as heard:
            heard.release_site(site_id, self._holder, deadline=0)

    def _sign(self, *, replaces: str | None = None, parts: Sequence[PartStatus] = ()) -> AgentBeat:
        return AgentBeat(**self._me.model_dump(), holder=self._holder, replaces=replaces, parts=list(parts))


@contextmanager
def lock_site(site: SiteDirectory, me: AgentProcess) -> Iterator[None]:
    """What one agent of a directory at a time can have; it says who that is. Raises ConfigurationError when another
    one has it."""
    with _lock_file(site).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(f"another agent serves {site.path}{_who(recorded_agent(site))}") from None
        except OSError as error:  # as on file systems that are mounted without locks: there is the lease
            log.warning("%s cannot be locked: %s", site.path, error)
        _rewrite(file.name, me.model_dump_json())
        yield
        _rewrite(file.name, "")


def recorded_agent(site: SiteDirectory) -> AgentProcess | None:
    """The agent that serves the directory, or was killed while it did."""
    try:
        return AgentProcess.model_validate_json(_lock_file(site).read_bytes())
    except (FileNotFoundError, ValidationError):  # empty: it has ended, or just begins
        return None


def _lock_file(site: SiteDirectory) -> Path:
    return site.path / "agent.lock"


def _rewrite(path: str, text: str) -> None:
    Path(path).write_text(text)  # in place: the lock is the file's, not the name's


def _who(agent: AgentProcess | None) -> str:
    return "" if agent is None else f": on {agent.hostname}, pid {agent.pid}, since {agent.started:%Y-%m-%d %H:%M}"
