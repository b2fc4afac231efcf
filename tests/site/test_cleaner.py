"""The file cleaner: what it removes, when, how often; and what it must never touch."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from pydantic import ValidationError

from balsam_exec.client.service import Service
from balsam_exec.model.apps import AppSpec
from balsam_exec.model.base import now
from balsam_exec.model.errors import ServiceUnavailable
from balsam_exec.model.jobs import JobPatch, JobSpec
from balsam_exec.model.sessions import AcquireRequest, Report, SessionSpec
from balsam_exec.model.sites import SiteRecord
from balsam_exec.model.states import JobState
from balsam_exec.platform.settings import SiteDirectory
from balsam_exec.site import cleaner
from balsam_exec.site.agent import Agent
from balsam_exec.site.cleaner import FileCleaner
from balsam_exec.site.identity import this_process
from balsam_exec.site.registration import init_site
from balsam_exec.site.removal import matches, remove
from tests.support.processes import wait_until
from tests.support.services import LiveService
from tests.support.warm import Template

# --- which files


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("*.h5", "a.h5", True),
        ("*.h5", "a.h5.old", False),
        ("*.h5", "sub/a.h5", False),
        ("*.h5", ".a.h5", False),
        (".*.h5", ".a.h5", True),
        ("a?[0-9].log", "ab7.log", True),
        ("A.log", "a.log", False),
        ("sub/*", "sub/a", True),
        ("sub/*", "sub/b/a", False),
        ("*/a", "sub/a", True),
        ("**/a", "a", True),
        ("**/a", "b/c/a", True),
        ("**/a", ".b/a", False),
        ("b/**/a", "b/a", True),
        ("b/**/a", "b/x/y/a", True),
        ("b/**/a", "c/a", False),
        ("**", "a", True),
        ("**", "b/c/a", True),
        ("**", "b/.c/a", False),
        ("sub/**", "sub/x/a", True),
        ("sub/**", "other/a", False),
        ("../a", "a", False),
        ("/a", "a", False),
        ("", "a", False),
        ("a", "a/b", False),
    ],
)
def test_globs(pattern: str, path: str, expected: bool) -> None:
    assert matches(path.split("/"), pattern.split("/")) is expected


def tree(top: Path) -> set[str]:
    """The files and links below a directory."""
    return {str(p.relative_to(top)) for p in top.rglob("*") if p.is_symlink() or not p.is_dir()}


def plant(top: Path, *files: str) -> None:
    for name in files:
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def test_only_what_matches_is_removed(tmp_path: Path) -> None:
    plant(tmp_path / "w", "a.h5", "a.out", "sub/b.h5", "sub/deep/c.h5", ".hidden.h5")
    assert remove(tmp_path, "w", ["*.h5"]) == ["a.h5"]
    assert sorted(remove(tmp_path, "w", ["**/*.h5", "sub/nothing"])) == ["sub/b.h5", "sub/deep/c.h5"]
    assert tree(tmp_path / "w") == {"a.out", ".hidden.h5"}
    assert (tmp_path / "w/sub/deep").is_dir()


def test_links_are_removed_and_never_followed(tmp_path: Path) -> None:
    plant(tmp_path, "elsewhere/a.h5", "elsewhere/sub/b.h5")
    plant(tmp_path / "data/w", "own.h5")
    os.symlink(tmp_path / "elsewhere", tmp_path / "data/w/directory")
    os.symlink(tmp_path / "elsewhere/a.h5", tmp_path / "data/w/file.h5")
    assert sorted(remove(tmp_path / "data", "w", ["**/*.h5", "../../elsewhere/*", "/**"])) == ["file.h5", "own.h5"]
    assert remove(tmp_path / "data", "w", ["**"]) == ["directory"]
    assert tree(tmp_path / "elsewhere") == {"a.h5", "sub/b.h5"}


@pytest.mark.parametrize("link", ["w", "w/inner"])
def test_a_workdir_behind_a_link_is_not_entered(tmp_path: Path, link: str) -> None:
    plant(tmp_path, "elsewhere/inner/a.h5", "elsewhere/a.h5")
    path = tmp_path / "data" / link
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path / "elsewhere")
    for workdir in ("w", "w/inner"):
        if workdir.startswith(link):
            with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
                remove(tmp_path / "data", workdir, ["**"])
    assert tree(tmp_path / "elsewhere") == {"a.h5", "inner/a.h5"}


def test_a_site_may_have_its_data_behind_a_link(tmp_path: Path) -> None:
    plant(tmp_path / "scratch/w", "a.h5")
    (tmp_path / "data").symlink_to(tmp_path / "scratch")
    assert remove(tmp_path / "data", "w", ["*"]) == ["a.h5"]


@pytest.mark.parametrize("workdir", ["..", "w/../..", "/etc"])
def test_a_workdir_outside_is_refused(tmp_path: Path, workdir: str) -> None:
    with pytest.raises(ValueError, match="workdir is relative"):
        remove(tmp_path, workdir, ["*"])


# --- which jobs, and when


class Bench:
    """A site on a real service, a cleaner that can be started and stopped, and jobs that end as one says."""

    def __init__(self, service: Service, site: SiteDirectory, record: SiteRecord) -> None:
        self.service = service
        self.site = site
        self.record = record
        self.app = self.new_app("Sim", ["*.h5"])
        self._session = service.open_session(SessionSpec(site_id=self.record.id)).id

    def new_app(self, name: str, cleanup_files: list[str]) -> int:
        spec = AppSpec(site_id=self.record.id, name=name, command_template="true", cleanup_files=cleanup_files)
        return self.service.put_app(spec).id

    def job(
        self, workdir: str = "w", app: int | None = None, files: tuple[str, ...] = ("a.h5",), **more: object
    ) -> int:
        plant(self.site.data / workdir, *files)
        [created] = self.service.create_jobs([JobSpec(app_id=app or self.app, workdir=workdir, **more)])
        return created.id

    def end(self, *ids: int, state: JobState = JobState.RUN_DONE) -> None:
        request = AcquireRequest(max_jobs=1000, max_nodes=1)
        for job in self.service.acquire(self._session, request):
            told = [JobState.RUNNING, state] if job.id in ids else [None]
            reports = [Report(job_id=job.id, epoch=job.epoch, state=one, timestamp=now()) for one in told]
            self.service.report(self._session, reports)

    @contextmanager
    def cleaning(self) -> Iterator[None]:
        part = FileCleaner(self.service, self.record, self.site)
        part.start()
        try:
            yield
        finally:
            part.stop()
            part.join(20)
            assert part._thread is not None
            assert not part._thread.is_alive()

    def clean(self) -> None:
        """Let it see to all that has happened so far."""
        marker = self.job("marker", files=("m.h5",))
        self.end(marker)
        with self.cleaning():
            self.gone("marker/m.h5")
            wait_until(lambda: not self.postponed(marker), 20, "the progress to be saved")

    def postponed(self, job_id: int) -> bool:
        try:
            postponed = self.progress().postponed
        except (FileNotFoundError, ValidationError):  # nothing is saved yet, or what is there is damaged
            return True
        return any(job_id in ids for ids in postponed.values())

    def progress(self) -> cleaner.Progress:
        return cleaner.Progress.model_validate_json((self.site.path / "file-cleaner.json").read_bytes())

    def gone(self, *files: str) -> None:
        wait_until(lambda: not any((self.site.data / name).exists() for name in files), 20, f"{files} to be removed")

    def there(self, *files: str) -> bool:
        return all((self.site.data / name).exists() for name in files)


@pytest.fixture(scope="module")
def live(template: Template, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    directory = tmp_path_factory.mktemp("service")
    with LiveService(f"sqlite:///{directory / 'balsam.db'}", directory, template=template) as service:
        yield service


@pytest.fixture
def bench(live: LiveService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(cleaner, "_GATHER", 0.0)
    record = init_site(live.service, tmp_path / "site", tmp_path.name)
    return Bench(live.service, SiteDirectory(tmp_path / "site"), record)


def test_files_of_a_finished_job_are_removed_at_once_and_logged(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "balsam_exec.site.cleaner")
    with bench.cleaning():
        finished, failed = bench.job("one", files=("a.h5", "b.h5", "keep.out")), bench.job("two")
        bench.end(finished)
        bench.gone("one/a.h5", "one/b.h5")
        wait_until(lambda: "removed" in caplog.text, 20, "a line of the log")
        bench.end(failed, state=JobState.RUN_ERROR)
    bench.clean()
    assert bench.there("one/keep.out", "two/a.h5")
    lines = [record.message for record in caplog.records if f"job {finished}:" in record.message]
    assert [sorted(line.split(": ")[2].split(", ")) for line in lines] == [["a.h5", "b.h5"]]


def test_an_app_that_declares_nothing_loses_nothing(bench: Bench) -> None:
    job = bench.job(app=bench.new_app("Tidy", []))
    bench.end(job)
    bench.clean()
    assert bench.there("w/a.h5")


def test_what_finished_while_no_agent_ran_is_cleaned_later(bench: Bench) -> None:
    before = bench.job("before")
    bench.end(before)
    bench.clean()
    assert not bench.there("before/a.h5")
    meanwhile = bench.job("meanwhile")
    bench.end(meanwhile)
    bench.clean()
    assert not bench.there("meanwhile/a.h5")


def test_each_finished_job_is_cleaned_once(bench: Bench) -> None:
    job = bench.job()
    bench.end(job)
    bench.clean()
    plant(bench.site.data / "w", "a.h5")  # by a person, afterwards
    bench.clean()
    assert bench.there("w/a.h5")
    bench.service.patch_job(job, JobPatch(state=JobState.RESTART_READY))
    bench.end(job)
    bench.clean()
    assert not bench.there("w/a.h5")


def test_a_job_that_runs_again_keeps_its_files(bench: Bench) -> None:
    job = bench.job()
    bench.end(job)
    bench.service.patch_job(job, JobPatch(state=JobState.RESTART_READY))
    bench.clean()
    assert bench.there("w/a.h5")


def test_a_workdir_that_jobs_share_is_cleaned_when_the_last_has_finished(bench: Bench) -> None:
    first, second, third = bench.job(), bench.job(), bench.job(app=bench.new_app("Other", ["*.tmp"]))
    bench.end(first)
    bench.clean()
    bench.end(third)
    bench.clean()
    assert bench.there("w/a.h5")
    bench.end(second, state=JobState.RUN_ERROR)
    bench.clean()
    assert bench.there("w/a.h5")  # it may be run again
    bench.service.patch_job(second, JobPatch(state=JobState.RESTART_READY))
    bench.end(second)
    bench.clean()
    assert not bench.there("w/a.h5")
    assert bench.progress().postponed == {}


def test_a_workdir_is_shared_however_it_is_spelled(bench: Bench) -> None:
    finished, other = bench.job("w"), bench.job("./w//.")
    assert bench.service.job(other).workdir == "w"
    bench.end(finished)
    bench.clean()
    assert bench.there("w/a.h5")


def test_a_job_that_was_deleted_holds_up_nobody(bench: Bench) -> None:
    finished, other = bench.job(), bench.job()
    bench.end(finished)
    bench.clean()
    assert bench.there("w/a.h5")
    bench.service.delete_job(other)
    bench.clean()
    assert not bench.there("w/a.h5")


def test_a_workdir_within_another_is_safe_while_its_job_needs_it(bench: Bench) -> None:
    outer = bench.job("w", app=bench.new_app("Deep", ["**/*.h5"]))
    inner = bench.job("w/inner")
    bench.end(outer)
    bench.clean()
    assert bench.there("w/a.h5", "w/inner/a.h5")
    bench.end(inner)
    bench.clean()
    assert not bench.there("w/a.h5")
    assert not bench.there("w/inner/a.h5")


def test_a_job_beside_it_holds_up_nobody(bench: Bench) -> None:
    job, _ = bench.job("w", app=bench.new_app("Deep", ["**"])), bench.job("w-other")
    bench.end(job)
    bench.clean()
    assert not bench.there("w/a.h5")
    assert bench.there("w-other/a.h5")


def test_files_stay_until_children_have_copied_them(bench: Bench) -> None:
    parent, other = bench.job("parent"), bench.job("other", app=bench.new_app("Tidy", []))
    child = bench.job("child", parent_ids=[parent, other], input_files=["*.h5"])
    indifferent = bench.job("indifferent")
    bench.job("later", parent_ids=[indifferent, other])
    bench.end(parent, indifferent)
    bench.clean()
    assert bench.there("parent/a.h5")
    assert not bench.there("indifferent/a.h5")
    bench.service.delete_job(child)
    bench.clean()
    assert not bench.there("parent/a.h5")


def test_many_jobs(bench: Bench) -> None:
    specs = [JobSpec(app_id=bench.app, workdir=f"{'long' * 20}/{i}", node_packing_count=10) for i in range(700)]
    ids = [created.id for created in bench.service.create_jobs(specs)]
    for spec in specs:
        plant(bench.site.data / spec.workdir, "a.h5")
    bench.end(*ids)
    bench.clean()
    assert not list(bench.site.data.rglob("*.h5"))


def test_what_goes_wrong_is_done_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As when the agent is killed in the middle: what has ended is seen to before that is noted."""
    bench.clean()
    trouble = [ServiceUnavailable("in the middle"), RuntimeError("a defect")]
    needed = FileCleaner._needed

    def fail(*arguments: Any) -> Any:
        if trouble:
            raise trouble.pop()
        return needed(*arguments)

    monkeypatch.setattr(FileCleaner, "_needed", fail)
    first, second = bench.job("one"), bench.job("two")
    bench.end(first)
    with bench.cleaning():
        bench.gone("one/a.h5")
        bench.end(second)
        bench.gone("two/a.h5")
    assert not trouble
    assert caplog.text.count("file-cleaner: ") == 2


def test_damaged_progress_is_begun_anew(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.clean()
    (bench.site.path / "file-cleaner.json").write_text("{")
    job = bench.job()
    bench.end(job)
    bench.clean()
    assert not bench.there("w/a.h5")
    assert "file-cleaner.json is damaged" in caplog.text


@pytest.mark.parametrize("enabled", [False, True])
def test_an_agent_cleans_only_if_its_settings_say_so(bench: Bench, enabled: bool) -> None:
    settings = bench.site.settings_file.read_text()
    assert "file_cleaner:\n  enabled: false\n" in settings
    bench.site.settings_file.write_text(settings.replace("enabled: false", f"enabled: {str(enabled).lower()}"))
    ready: SimpleQueue[object] = SimpleQueue()
    me = this_process()
    agent = Agent(bench.service.sibling, bench.site, me, register=False, on_ready=ready.put, on_error=ready.put)
    agent.start()
    try:
        assert getattr(ready.get(timeout=20), "id", None) == bench.record.id
        assert (FileCleaner.name in agent._parts) is enabled
    finally:
        agent.stop()
