"""Job states and the one table of legal transitions (seed 001 "Job Lifecycle Hooks", seed 000 "State Flow").

Everything that moves a job asks this module: `check` says whether an actor may make a hop, `settle` says how
far a job goes on by itself over the steps it does not have.
"""

from __future__ import annotations

from enum import IntFlag, StrEnum

from balsam_exec.model.errors import IllegalTransition


class JobState(StrEnum):
    """Where a job stands. The comments say what happens next."""

    CREATED = "CREATED"  #: just stored; leaves this state in the transaction that stores it
    AWAITING_PARENTS = "AWAITING_PARENTS"  #: until every parent is JOB_FINISHED (see OnParentFailure)
    READY = "READY"  #: parents are done; the site brings its data
    STAGED_IN = "STAGED_IN"  #: data is there; the site runs `preprocess`
    PREPROCESSED = "PREPROCESSED"  #: runnable: a launcher may acquire it
    RUNNING = "RUNNING"  #: a launcher runs it under a lease
    RUN_DONE = "RUN_DONE"  #: exit code 0; the site runs `postprocess`
    POSTPROCESSED = "POSTPROCESSED"  #: the site stages data out
    STAGED_OUT = "STAGED_OUT"  #: leaves at once to JOB_FINISHED
    JOB_FINISHED = "JOB_FINISHED"  #: success, for good (unless a user restarts it)
    RUN_ERROR = "RUN_ERROR"  #: nonzero exit or exception; the site runs `handle_error`
    RUN_TIMEOUT = "RUN_TIMEOUT"  #: its allocation ended first; the site runs `handle_timeout`
    RESTART_READY = "RESTART_READY"  #: runnable again
    FAILED = "FAILED"  #: failure, for good (unless a user restarts it)
    USER_KILLED = "USER_KILLED"  #: killed by its owner, and nothing of it is left; for good (unless restarted)


class Actor(StrEnum):
    """Who may cause a transition."""

    SERVICE = "service"  #: settling, dependencies, the lease reaper
    LAUNCHER = "launcher"  #: under a lease
    SITE = "site"  #: hooks and transfers
    USER = "user"  #: the API and the command line


class Step(IntFlag):
    """The optional steps a job has, from its app's hooks and its transfers; a job skips the rest."""

    NONE = 0
    STAGE_IN = 1
    PREPROCESS = 2
    POSTPROCESS = 4
    STAGE_OUT = 8
    HANDLE_ERROR = 16
    HANDLE_TIMEOUT = 32
    INPUT_FILES = 64  #: files to copy from its parents


_PREPARATION = Step.STAGE_IN | Step.INPUT_FILES | Step.PREPROCESS


class OnParentFailure(StrEnum):
    """What becomes of a waiting job when one of its parents is FAILED or USER_KILLED."""

    FAIL = "fail"  #: it is FAILED too, and waits again when that parent is restarted
    RUN = "run"  #: it counts that parent as done
    HOLD = "hold"  #: it goes on waiting


#: A launcher may acquire a job in one of these.
RUNNABLE = frozenset({JobState.PREPROCESSED, JobState.RESTART_READY})
#: It has not started, or is to start anew.
WAITING = RUNNABLE | {JobState.AWAITING_PARENTS, JobState.READY, JobState.STAGED_IN}
#: Nothing more happens to a job in one of these unless its owner restarts it.
TERMINAL = frozenset({JobState.JOB_FINISHED, JobState.FAILED, JobState.USER_KILLED})
#: It has ended without success.
FAILURES = TERMINAL - {JobState.JOB_FINISHED}


def _table() -> dict[tuple[JobState, JobState], frozenset[Actor]]:
    s, a = JobState, Actor
    table: dict[tuple[JobState, JobState], set[Actor]] = {}

    def allow(sources: tuple[JobState, ...], targets: tuple[JobState, ...], *actors: Actor) -> None:
        for source in sources:
            for target in targets:
                table.setdefault((source, target), set()).update(actors)

    # Forward, one step or several at once (the service skips steps a job does not have).
    before_run = (s.CREATED, s.AWAITING_PARENTS, s.READY, s.STAGED_IN, s.PREPROCESSED)
    after_run = (s.RUN_DONE, s.POSTPROCESSED, s.STAGED_OUT, s.JOB_FINISHED)
    for path in (before_run, after_run):
        for i, source in enumerate(path):
            allow((source,), path[i + 1 :], a.SERVICE)
    # A parent failed, is to run again, or is another one.
    allow((s.AWAITING_PARENTS,), (s.FAILED,), a.SERVICE)
    allow((s.READY, s.STAGED_IN, s.PREPROCESSED, s.RESTART_READY, s.FAILED), (s.AWAITING_PARENTS,), a.SERVICE)
    allow((s.RESTART_READY,), (s.READY, s.STAGED_IN), a.SERVICE)  # it ended before it was prepared
    # The run itself.
    allow((s.PREPROCESSED, s.RESTART_READY), (s.RUNNING,), a.LAUNCHER)
    allow((s.RUNNING,), (s.RUN_DONE, s.RUN_ERROR, s.RUN_TIMEOUT), a.LAUNCHER)
    allow((s.RUNNING,), (s.RUN_TIMEOUT,), a.SERVICE)  # the lease expired
    # A kill that was ordered while a launcher held the job: told by it, or done when it holds the job no more.
    allow((s.PREPROCESSED, s.RESTART_READY, s.RUNNING), (s.USER_KILLED,), a.LAUNCHER, a.SERVICE)
    allow((s.RUN_DONE, s.RUN_ERROR, s.RUN_TIMEOUT), (s.USER_KILLED,), a.SERVICE)
    # What hooks and transfers decide at the site.
    allow((s.READY,), (s.STAGED_IN, s.FAILED), a.SITE)
    allow((s.STAGED_IN,), (s.PREPROCESSED, s.FAILED), a.SITE)
    allow((s.RUN_DONE,), (s.POSTPROCESSED, s.RESTART_READY, s.FAILED), a.SITE)
    allow((s.POSTPROCESSED,), (s.STAGED_OUT, s.FAILED), a.SITE)
    allow((s.RUN_ERROR, s.RUN_TIMEOUT), (s.RESTART_READY, s.FAILED), a.SITE, a.SERVICE)
    # What an owner may do at any time.
    allow((s.JOB_FINISHED, s.FAILED, s.USER_KILLED, s.RUN_ERROR, s.RUN_TIMEOUT), (s.RESTART_READY,), a.USER)
    waiting = (*before_run, s.RESTART_READY, s.RUN_DONE, s.POSTPROCESSED, s.STAGED_OUT, s.RUN_ERROR, s.RUN_TIMEOUT)
    allow(waiting, (s.USER_KILLED, s.FAILED), a.USER)
    return {hop: frozenset(actors) for hop, actors in table.items()}


#: Every legal hop and who may cause it. A pair that is not here never happens.
TRANSITIONS = _table()


def check(source: JobState, target: JobState, actor: Actor) -> None:
    """Raise `IllegalTransition` unless `actor` may move a job from `source` to `target`."""
    actors = TRANSITIONS.get((source, target))
    if actors is None:
        legal = sorted(t for (f, t), who in TRANSITIONS.items() if f is source and actor in who)
        allowed = ", ".join(legal) or "nothing"
        raise IllegalTransition(f"a job cannot go from {source} to {target}; from here a {actor} may set: {allowed}")
    if actor not in actors:
        raise IllegalTransition(f"only {', '.join(sorted(actors))} may move a job from {source} to {target}")


def waits_for(on_parent_failure: str, unfinished: int, failed: int) -> int:
    """How many parents a job waits for, if so many are not JOB_FINISHED, among them so many that have failed."""
    return unfinished - failed if on_parent_failure == OnParentFailure.RUN else unfinished


def is_lost(on_parent_failure: str, failed: int) -> bool:
    """Whether a job cannot run any more, with so many parents that have failed."""
    return failed > 0 and on_parent_failure == OnParentFailure.FAIL


def settle(
    state: JobState, steps: Step, waiting_for: int = 0, *, has_run: bool = True, killed: bool = False
) -> JobState:
    """Where a job that has just come to `state` really comes to rest, over all steps it does not have.

    `waiting_for` counts the parents that it still waits for; what has not started goes back to do so, what is restarted
    too. What is restarted and not `has_run` is prepared first. The result equals `state` where the job has to wait for
    somebody: its parents, the site, a launcher. With `killed`, where its kill was ordered and no launcher holds it any
    more, it waits for nobody: it has ended by itself, or ends as USER_KILLED.
    """
    rest = _over_missing_steps(state, steps, waiting_for, has_run)
    return JobState.USER_KILLED if killed and rest not in TERMINAL else rest


def _over_missing_steps(state: JobState, steps: Step, waiting_for: int, has_run: bool) -> JobState:
    s = JobState
    if waiting_for and (state in WAITING or state is s.CREATED):
        return s.AWAITING_PARENTS
    if state in (s.CREATED, s.AWAITING_PARENTS) or (state is s.RESTART_READY and not has_run and steps & _PREPARATION):
        state = s.READY
    if state is s.READY and not steps & (Step.STAGE_IN | Step.INPUT_FILES):
        state = s.STAGED_IN
    if state is s.STAGED_IN and not steps & Step.PREPROCESS:
        state = s.PREPROCESSED
    if state is s.RUN_DONE and not steps & Step.POSTPROCESS:
        state = s.POSTPROCESSED
    if state is s.POSTPROCESSED and not steps & Step.STAGE_OUT:
        state = s.STAGED_OUT
    if state is s.STAGED_OUT:
        state = s.JOB_FINISHED
    if state is s.RUN_ERROR and not steps & Step.HANDLE_ERROR:
        state = s.FAILED
    if state is s.RUN_TIMEOUT and not steps & Step.HANDLE_TIMEOUT:
        state = s.RESTART_READY
    return state


class BatchJobState(StrEnum):
    """Where an allocation request stands (seed 003, `submit_allocation`)."""

    PENDING_SUBMISSION = "pending_submission"  #: the site has not handed it to the scheduler yet
    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"  #: ended, for whatever reason; `status_info` says which
    SUBMIT_FAILED = "submit_failed"  #: the scheduler refused it
    PENDING_DELETION = "pending_deletion"  #: its owner wants it gone; the site cancels it


BATCH_JOB_ENDED = frozenset({BatchJobState.FINISHED, BatchJobState.SUBMIT_FAILED})

_b = BatchJobState
BATCH_JOB_TRANSITIONS: frozenset[tuple[BatchJobState, BatchJobState]] = frozenset(
    {
        *(
            (_b.PENDING_SUBMISSION, t)
            for t in (_b.QUEUED, _b.RUNNING, _b.SUBMIT_FAILED, _b.PENDING_DELETION, _b.FINISHED)
        ),
        *((_b.QUEUED, t) for t in (_b.RUNNING, _b.FINISHED, _b.PENDING_DELETION)),
        *((_b.RUNNING, t) for t in (_b.FINISHED, _b.PENDING_DELETION)),
        (_b.PENDING_DELETION, _b.FINISHED),
    }
)
