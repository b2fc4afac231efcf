"""Tasks whose jobs the service has already: of a libEnsemble run that has died, or of another process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from balsam_exec.client.pages import every
from balsam_exec.client.service import Service
from balsam_exec.executors.libensemble.apps import RegisteredApp
from balsam_exec.executors.libensemble.session import WORKFLOW_TAG
from balsam_exec.executors.libensemble.story import Story, TaskFuture
from balsam_exec.executors.libensemble.task import BalsamTask, log
from balsam_exec.model.events import Kind
from balsam_exec.model.jobs import JobRecord
from balsam_exec.model.states import TERMINAL, JobState

if TYPE_CHECKING:
    from balsam_exec.executors.libensemble.executor import BalsamExecutor

#: Ids in one URL.
_CHUNK = 500


def reattach(
    executor: BalsamExecutor, app_name: str | None, workdir: str | None, tags: Mapping[str, str], finished: bool
) -> list[BalsamTask]:
    session = executor._here
    wanted = {**tags, WORKFLOW_TAG: executor.workflow_name}
    engine = session.engine_for(wanted)  # which hears of whatever happens from here on
    try:
        found = [
            (record, app)
            for record in _records(session.service, wanted, executor.workflow_name, workdir, finished)
            if (app := _app_of(executor, record, app_name, workdir)) is not None
        ]
        stories = _stories(session.service, [record for record, _ in found])
        results = session.service.results(record.id for record, _ in found if record.state in TERMINAL)
        tasks = []
        for record, app in found:
            future = cast(TaskFuture, engine.adopt(record.id, record.state, results.get(record.id)))
            future.begin(stories[record.id])
            task = _task(record, app)
            task.follow(future, engine, session)
            executor._note(task)
            tasks.append(task)
    finally:
        engine.close()  # it ends with the last of these
    return tasks


def _records(
    service: Service, tags: Mapping[str, str], workflow: str, workdir: str | None, finished: bool
) -> Iterator[JobRecord]:
    narrower: dict[str, Any] = (
        {"workdir__startswith": f"{workflow}/{workdir}"} if workdir and not workdir.startswith("/") else {}
    )
    records = every(service.jobs, tags=dict(tags), **narrower)
    return (record for record in records if finished or record.state not in TERMINAL)


def _app_of(
    executor: BalsamExecutor, record: JobRecord, app_name: str | None, workdir: str | None
) -> RegisteredApp | None:
    """The app of a job, None if it is not meant."""
    noted = record.data.get("libe", {})
    name = noted.get("app")
    if app_name is not None and name != app_name:
        return None
    if workdir and workdir.startswith("/") and not str(noted.get("workdir", "")).startswith(workdir):
        return None
    app: RegisteredApp | None = executor.apps.get(name)
    if app is None:
        log.warning("job %d is not reattached: its app %s is not registered here", record.id, name)
    return app


def _task(record: JobRecord, app: RegisteredApp) -> BalsamTask:
    noted = record.data["libe"]
    stderr = record.stderr or record.stdout
    task = BalsamTask(app, record.parameters, noted["workdir"], record.stdout, stderr, noted["worker"])
    task.name = noted["task"]
    task.tags = record.tags
    task.ngpus_req = int(record.gpus_per_node)
    return task


def _stories(service: Service, records: list[JobRecord]) -> dict[int, Story]:
    """What has happened to these jobs so far."""
    stories = {record.id: Story(created=record.created.timestamp()) for record in records}
    ids = list(stories)
    for start in range(0, len(ids), _CHUNK):
        for event in every(service.events, kind=[Kind.JOB], subject_id=ids[start : start + _CHUNK]):
            if event.to_state in JobState.__members__:
                story = stories[event.subject_id]
                stories[event.subject_id] = story.after(
                    JobState(event.to_state), event.timestamp.timestamp(), event.data
                )
    return stories
