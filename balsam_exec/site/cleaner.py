"""Removes what apps declare as disposable (`cleanup_files`) from the workdirs of finished jobs (seed 001 "Cleanup
Files")."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from balsam_exec.client.feed import Follower, follow
from balsam_exec.client.pages import every
from balsam_exec.client.service import CHUNK_IDS, Service
from balsam_exec.model.base import Id
from balsam_exec.model.events import FeedEvent, Kind
from balsam_exec.model.jobs import JobRecord
from balsam_exec.model.queries import FeedQuery
from balsam_exec.model.sites import SiteRecord
from balsam_exec.model.states import TERMINAL, JobState
from balsam_exec.platform.settings import SiteDirectory
from balsam_exec.site.part import Part
from balsam_exec.site.removal import is_deep, remove

log = logging.getLogger(__name__)

#: Seconds to let jobs gather that are looked at together; nobody waits for a file to disappear.
_GATHER = 1.0
#: Files that a line of the log names.
_NAMED = 20
#: After these events there may be something to remove: a job's own files, or what waited for the job.
_ENDS = [*sorted(TERMINAL), "deleted"]
_WAITING_FOR_FILES = [JobState.AWAITING_PARENTS, JobState.READY]
#: Characters of parameters in a URL, and of a parameter beside its value.
_URL, _BETWEEN = 6000, len("&workdir=")


class Progress(BaseModel):
    """How far the cleaner is, kept in a file of the site's directory, so that it looks at each finished job once."""

    site: str  #: which one this is about: a directory may have served others
    cursor: str  #: in the change feed; what ended before has been seen to
    #: Finished jobs whose files are still needed, by the job that needs them: looked at again when that one ends.
    postponed: dict[Id, list[Id]] = {}

    @classmethod
    def load(cls, path: Path, site: str) -> Progress | None:
        """None where there is none of this site; what cannot be read counts as none, and is said."""
        try:
            found = cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            log.warning("%s is damaged; looking at all finished jobs again: %s", path, error)
            return None
        return found if found.site == site else None

    def save(self, path: Path) -> None:
        temporary = path.with_suffix(".new")
        temporary.write_text(self.model_dump_json())
        os.replace(temporary, path)


class FileCleaner(Part):
    """Woken by the change feed. The first time that it runs at a site it looks at all jobs that finished before."""

    name = "file-cleaner"

    def __init__(self, service: Service, record: SiteRecord, site: SiteDirectory) -> None:
        super().__init__()
        self._service = service
        self._site_id = record.id
        self._identity = f"{record.id} of {record.created.isoformat()}"
        self._site = site
        self._file = site.path / "file-cleaner.json"
        self._feed: Follower | None = None

    def run(self) -> None:
        progress = Progress.load(self._file, self._identity)
        cursor = None if progress is None else progress.cursor
        query = FeedQuery(cursor=cursor, kind=[Kind.JOB], site_id=[self._site_id], to_state=_ENDS)
        with follow(self._service, query) as self._feed:
            if progress is None:
                progress = Progress(site=self._identity, cursor=self._feed.cursor)
                self._clean_all(progress)
            while not self.stopped:
                if events := self._feed.poll():
                    self._take(events, progress)
                    progress.cursor = self._feed.cursor
                    progress.save(self._file)
                    self.progress(f"looked after {len(events)} jobs that ended")
                    self.wait(_GATHER)

    def stop(self) -> None:
        super().stop()
        if self._feed is not None:
            self._feed.stop()

    def _clean_all(self, progress: Progress) -> None:
        """What has finished before the beginning of the feed."""
        apps = [app.id for app in every(self._service.apps, site_id=[self._site_id]) if app.cleanup_files]
        finished = JobState.JOB_FINISHED
        for start in range(0, len(apps), CHUNK_IDS):
            some = apps[start : start + CHUNK_IDS]
            self._clean([job.id for job in self._jobs(state=[finished], app_id=some)], progress)
        progress.save(self._file)

    def _take(self, events: Iterable[FeedEvent], progress: Progress) -> None:
        due: dict[int, None] = {}
        for event in events:
            due.update(dict.fromkeys(progress.postponed.pop(event.subject_id, ())))
            if event.to_state == JobState.JOB_FINISHED:
                due[event.subject_id] = None
        self._clean(list(due), progress)

    def _clean(self, ids: Sequence[int], progress: Progress) -> None:
        for start in range(0, len(ids), CHUNK_IDS):
            some = ids[start : start + CHUNK_IDS]
            jobs = list(self._jobs(id=some, state=[JobState.JOB_FINISHED]))  # the others are gone, or run again
            patterns = {
                app.id: app.cleanup_files for app in every(self._service.apps, id=sorted({job.app_id for job in jobs}))
            }
            concerned = [job for job in jobs if patterns.get(job.app_id)]
            needed_by = self._needed(concerned, patterns) if concerned else {}
            for job in concerned:
                if (other := needed_by.get(job.id)) is not None:
                    progress.postponed.setdefault(other, []).append(job.id)
                else:
                    self._remove(job, patterns[job.app_id])

    def _needed(self, jobs: Sequence[JobRecord], patterns: dict[int, list[str]]) -> dict[int, int]:
        """Those of the finished jobs whose files another job may need, and that other job."""
        needed = self._by_children(jobs)
        users = self._users({job.workdir for job in jobs})
        for job in jobs:
            user = users.get(job.workdir)
            if user is None and any(map(is_deep, patterns[job.app_id])):
                user = self._user_below(job.workdir)
            if user is not None:
                needed[job.id] = user
        return needed

    def _by_children(self, jobs: Sequence[JobRecord]) -> dict[int, int]:
        """Parents of jobs that have not got their input files yet."""
        ids = {job.id for job in jobs}
        children = self._jobs(parent_id=sorted(ids), state=_WAITING_FOR_FILES)
        return {parent: child.id for child in children if child.input_files for parent in ids & set(child.parent_ids)}

    def _users(self, workdirs: Iterable[str]) -> dict[str, int]:
        """Of these workdirs the ones with jobs that have not finished, and for each the last of these jobs, which is
        likely to be the last to finish."""
        users: dict[str, int] = {}
        for some in _for_urls(workdirs):
            for job in self._jobs(workdir=some, state__ne=[JobState.JOB_FINISHED], ordering="-id"):
                users.setdefault(job.workdir, job.id)
                if all(workdir in users for workdir in some):
                    break
        return users

    def _user_below(self, workdir: str) -> int | None:
        """A job that has not finished and has a workdir inside of this one."""
        below = {} if workdir == "." else {"workdir__startswith": f"{workdir}/"}
        unfinished = self._jobs(state__ne=[JobState.JOB_FINISHED], ordering="-id", limit=1, **below)
        return next((job.id for job in unfinished), None)

    def _remove(self, job: JobRecord, patterns: Sequence[str]) -> None:
        try:
            removed = remove(self._site.data, job.workdir, patterns)
        except FileNotFoundError:
            return  # it never wrote anything
        except (OSError, ValueError) as error:
            log.warning("job %d: its workdir, %s, cannot be cleaned: %s", job.id, job.workdir, error)
            return
        if removed:
            more = f" and {len(removed) - _NAMED} more" if len(removed) > _NAMED else ""
            log.info("job %d: removed from %s: %s%s", job.id, job.workdir, ", ".join(removed[:_NAMED]), more)

    def _jobs(self, **lookups: Any) -> Iterator[JobRecord]:
        return every(self._service.jobs, site_id=[self._site_id], **lookups)


def _for_urls(texts: Iterable[str]) -> Iterator[list[str]]:
    """The texts in groups that fit into a URL, whatever stands between us and the service."""
    group: list[str] = []
    size = 0
    for text in texts:
        size += len(quote(text)) + _BETWEEN
        if group and size > _URL:
            yield group
            group, size = [], len(quote(text)) + _BETWEEN
        group.append(text)
    if group:
        yield group
