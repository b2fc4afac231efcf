"""`BalsamTask`: a job as libEnsemble's user functions know tasks."""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any

from libensemble.executors.executor import ExecutorException, Task, TimeoutExpired

from balsam_exec.executors.libensemble.story import SUCCEEDED, Story, TaskFuture
from balsam_exec.model.errors import BalsamError, NotFound
from balsam_exec.model.files import MAX_CHUNK
from balsam_exec.model.states import JobState

if TYPE_CHECKING:
    from balsam_exec.api.jobs import Job
    from balsam_exec.executors.engine import Engine
    from balsam_exec.executors.libensemble.session import Session

# Below libEnsemble's own, so that it is in ensemble.log with the worker's number.
log = logging.getLogger("libensemble.executors.balsam")

#: The least time a kill is given to be confirmed, in seconds: the job's processes have theirs to end in order.
KILL_SEC = 60.0
#: The `errcode` of a task that failed without an exit code: a Python app that raised, a job that could not start.
NO_CODE = 1


class BalsamTask(Task):  # type: ignore[misc]
    """A task of `BalsamExecutor`: one job of the service (seed 003 "BalsamTask").

    Its attributes are those of libEnsemble's tasks: `state` (WAITING, RUNNING, FINISHED, FAILED, FAILED_TO_START,
    USER_KILLED), `finished`, `success`, `errcode` (the exit code), `submit_time` (ms), `runtime` (s, by the clock where
    it ran), `total_time` (s, from its submission to its end), `workdir`, `stdout`, `stderr`. `poll`, `wait` and
    whatever uses them bring these up to date; that asks nobody, since the service tells of every change. `error` says
    why it failed.
    """

    def __init__(
        self,
        app: Any = None,
        app_args: Any = None,
        workdir: str | None = None,
        stdout: str | None = None,
        stderr: str | None = None,
        workerid: int | None = None,
        dry_run: bool = False,
    ) -> None:
        self._process: Job | None = None
        self._future: TaskFuture | None = None
        self._engine: Engine | None = None
        self._session: Session | None = None
        self.error = ""
        self.tags: dict[str, str] = {}
        self.finished = False
        self.total_time: float | None = None
        super().__init__(app, app_args, workdir, stdout, stderr, workerid, dry_run)

    def __repr__(self) -> str:
        return f"<BalsamTask {self.name} job={self.job_id} {self.state}>"

    def follow(self, future: TaskFuture, engine: Engine, session: Session) -> None:
        """The task's job is on its way, or there already."""
        self._future, self._engine, self._session = future, engine, session
        self.run_attempts = 1
        self.timer.start()
        self.timer.tstart = self.submit_time = round(future.story.created * 1000)
        self._update()

    # --- how it is

    @property
    def job_id(self) -> int | None:
        """The id of its job, once the service has it."""
        return None if self._future is None else self._future.job_id

    @property
    def process(self) -> Job | None:
        """Its `Job`, with all that a Job can do; asked for when it is first wanted. None before it is submitted."""
        if self._process is None and self.job_id is not None and self._session is not None:
            self._process = self._session.client.Job.objects.get(id=self.job_id)
        return self._process

    @process.setter
    def process(self, value: Job | None) -> None:
        self._process = value

    def poll(self) -> None:
        """Bring the attributes up to date, from what the service has told."""
        if self.dry_run:
            self._set_complete()
        elif self._check_poll():
            self._followed()
            self._update()

    def wait(self, timeout: float | None = None) -> None:
        """Wait for the end; whoever waits is woken by it. Raises TimeoutExpired after `timeout` seconds."""
        if self.dry_run:
            self._set_complete()
        elif self._check_poll():
            ended = self.linger(timeout)
            self._update()
            if not ended:
                raise TimeoutExpired(self.name, timeout)

    def linger(self, timeout: float | None) -> bool:
        """Wait for the end, at most so many seconds; whether it came."""
        return self._followed().wait_until(lambda: False, timeout)

    def wait_started(self, timeout: float | None) -> bool:
        """Wait until it runs or has ended, at most so many seconds; whether it does."""
        future = self._followed()
        found = future.wait_until(lambda: future.story.started is not None, timeout)
        self._update()
        return found

    def calc_task_timing(self) -> None:
        """Bring runtime, total_time and timer up to date."""
        if self._future is None:
            log.warning("Cannot calc task timing - task %s was not submitted", self.name)
        else:
            self._time(self._future.story)

    # --- ending it

    def kill(self, wait_time: float | None = 60) -> None:
        """Kill it, and wait until nothing of it is left: `wait_time` seconds, but at least a minute.

        A task that has ended is left as it is. How long its processes have between SIGTERM and SIGKILL is its
        launcher's decision. Where the end is not confirmed in time the task stays as it is, with a warning; the kill
        remains ordered.
        """
        self.poll()
        if self.dry_run:
            return
        if self.finished:
            log.warning("Trying to kill task that is no longer running. Task %s: Status is %s", self.name, self.state)
            return
        log.info("Killing task %s", self.name)
        future = self._followed()
        assert self._engine is not None
        limit = max(KILL_SEC, wait_time or 0.0)
        try:
            self._engine.kill([future])
            if future.job_id is None and not future.done() and self._engine.flush(limit):
                self._engine.kill([future])  # it was on its way
        except BalsamError as error:
            log.error("task %s could not be killed: %s", self.name, error)
        else:
            if not self.linger(limit):
                log.warning("the end of task %s (job %s) is ordered but not confirmed yet", self.name, self.job_id)
        self._update()

    # --- its files

    def workdir_exists(self) -> bool:
        """Whether its directory is there, as far as this machine can see; a remote one is once it has run."""
        return os.path.isdir(self.workdir) if self._local else self.file_exists_in_workdir(self.stdout)

    def file_exists_in_workdir(self, filename: str) -> bool:
        if self._local:
            return bool(super().file_exists_in_workdir(filename))
        try:
            self._read(filename, 0, 0)
        except NotFound:
            return False
        return True

    def read_file_in_workdir(self, filename: str) -> str:
        """A file as text, wherever its site is. Raises ValueError if it is not there."""
        if self._local:
            return str(super().read_file_in_workdir(filename))
        found = b""
        try:
            while chunk := self._read(filename, len(found), MAX_CHUNK):
                found += chunk
        except NotFound:
            raise ValueError(f"{filename} not found in working directory") from None
        return found.decode()

    @property
    def _local(self) -> bool:
        return os.path.isabs(self.workdir or "")

    def _read(self, filename: str, offset: int, length: int) -> bytes:
        job = self.process
        if job is None:
            raise NotFound(f"task {self.name} is not at the service yet")
        return job.read_file(filename, offset=offset, length=length)

    # --- insides

    def _check_poll(self) -> bool:
        if self._future is None:
            raise ExecutorException(f"task {self.name} was not submitted")
        if self.finished:
            log.debug("Polled task %s has already finished. Not re-polling. Status is %s", self.name, self.state)
            return False
        return True

    def _followed(self) -> TaskFuture:
        """Its future, which lives in the process that submitted it alone."""
        if self._future is None or self._session is None:
            raise ExecutorException(f"task {self.name} was not submitted")
        if self._session.pid != os.getpid():
            raise ExecutorException(
                f"task {self.name} belongs to the process that submitted it; BalsamExecutor.reattach finds it"
            )
        return self._future

    def _update(self) -> None:
        if self.finished or self._future is None:
            return
        over, story = self._future.over, self._future.story
        self.errcode = story.return_code
        if not over:
            self.state = "RUNNING" if story.state is JobState.RUNNING else "WAITING"
        else:
            self.error = _error(self._future, story)
            self.state = _end_state(self._future, story)
            self.success = self.state == "FINISHED"
            if self.errcode is None and self.state != "USER_KILLED":
                self.errcode = 0 if self.success else NO_CODE
        self._time(story)
        self.finished = over
        if over:
            # What was killed on purpose says nothing of interest with its last breath.
            why = f": {self.error}" if self.error and self.state != "USER_KILLED" else ""
            log.info("Task %s finished with errcode %s (%s)%s", self.name, self.errcode, self.state, why)

    def _time(self, story: Story) -> None:
        now = time.time()
        self.runtime = story.runtime(now)
        if story.started is not None and self.timer.timing:
            self.timer.tstart = round((story.started + story.lag) * 1000)
        if self._future is not None and self._future.over and self.total_time is None:
            ended = now if story.ended is None else story.ended + story.lag
            self.total_time = max(0.0, ended - story.created)
            self.timer.stop()
            self.timer.tend = round(ended * 1000)
            self.timer.tcum = self.timer.tend - self.timer.tstart


def _end_state(future: TaskFuture, story: Story) -> str:
    if story.state in SUCCEEDED:
        return "FINISHED"
    if story.state is JobState.USER_KILLED or future.cancelled():
        return "USER_KILLED"
    return "FAILED_TO_START" if story.started is None else "FAILED"


def _error(future: TaskFuture, story: Story) -> str:
    if story.state in SUCCEEDED:
        return ""
    if story.over or future.cancelled():
        return story.error
    return str(future.exception() or story.error)  # refused by the service, deleted, or given up
