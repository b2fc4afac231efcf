"""What jobs want done in the shell that starts them (seed 001 "The Shell Preamble"), asked of their apps.

The code of apps is none that a launcher would load: it is asked in processes of their own, as hooks are.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from queue import Empty, SimpleQueue

from balsam_exec.hooks.calls import Ending, HookAnswer, HookCall
from balsam_exec.hooks.pool import HookPool, Task
from balsam_exec.launcher import outcomes
from balsam_exec.launcher.events import Ended
from balsam_exec.launcher.reactor import Reactor
from balsam_exec.model.apps import AppRecord, Isolation
from balsam_exec.model.jobs import JobRecord
from balsam_exec.model.sessions import LeasedJob
from balsam_exec.model.states import JobState

HOOK = "shell_preamble"


class Preambles:
    """Asks apps for the preambles of jobs. All methods are for the reactor's thread."""

    def __init__(self, reactor: Reactor, pool: HookPool, timeout: float) -> None:
        """`pool` is closed with it; `timeout` is in seconds, for each."""
        self._reactor = reactor
        self._pool = pool
        self._timeout = timeout
        self._waiting: dict[int, tuple[Task, Callable[[str], None]]] = {}
        self._answers: SimpleQueue[tuple[int, HookAnswer]] = SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        reactor.watch(self._wake, self._answered)

    def ask(self, call: HookCall, payload: bytes, go_on: Callable[[str], None]) -> None:
        """Go on with `go_on(preamble)`; where there comes none, the job has Ended."""
        job_id = call.job.id

        def done(answer: HookAnswer) -> None:
            self._answers.put((job_id, answer))
            os.eventfd_write(self._wake, 1)

        self._waiting[job_id] = self._pool.submit(lambda: (call, payload), self._timeout, done), go_on

    def kill(self, job_id: int) -> bool:
        """End the job, if it has not got its preamble yet; False if it is none of ours."""
        found = self._waiting.get(job_id)
        if found is not None:
            found[0].cancel()
        return found is not None

    def close(self) -> None:
        self._pool.close()
        self._reactor.forget(self._wake)
        os.close(self._wake)

    def _answered(self, _: int) -> None:
        os.eventfd_read(self._wake)
        while True:
            try:
                job_id, answer = self._answers.get_nowait()
            except Empty:
                return
            go_on = self._waiting.pop(job_id)[1]
            if answer.ending is Ending.RETURNED:
                go_on(answer.text)
            else:
                self._reactor.emit(Ended(job_id, outcomes.failed("exit", self._problem(answer))))

    def _problem(self, answer: HookAnswer) -> str:
        if answer.ending is Ending.TIMEOUT:
            return f"{HOOK} had not returned after {self._timeout:g} s (processing.hook_timeout_sec) and was ended"
        return f"{HOOK}: {answer.error}\n{answer.traceback}".strip()


def call_of(job: LeasedJob, app: AppRecord, site_id: int, workdir: str) -> HookCall:
    """The question for the job's preamble. What a lease does not tell of a job is asked for when somebody wants it."""
    state = JobState.RESTART_READY if job.restarted else JobState.PREPROCESSED
    known = {name: getattr(job, name) for name in LeasedJob.model_fields if name in JobRecord.model_fields}
    unknown = dict.fromkeys(("parent_ids", "transfers", "input_files", "created", "last_update"))
    record = JobRecord.model_construct(**{**unknown, **known}, site_id=site_id, state=state)
    return HookCall(
        hook=HOOK,
        job=record,
        workdir=workdir,
        app_digest=app.digest,
        environment=app.environment_variables,
        isolated=app.isolation is Isolation.PROCESS,
    )
