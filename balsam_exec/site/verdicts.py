"""What becomes of a job after its hook: pure decisions (seed 001 "Job Lifecycle Hooks")."""

from __future__ import annotations

from balsam_exec.hooks.calls import Ending, HookAnswer
from balsam_exec.model.errors import IllegalTransition
from balsam_exec.model.hooks import HOOK_OF, INPUT_FILES, Visit
from balsam_exec.model.jobs import JobPatch
from balsam_exec.model.states import TRANSITIONS, Actor, JobState, check


def hook_of(state: JobState) -> str:
    """What a site does for a job that rests in this state."""
    return HOOK_OF.get(state, INPUT_FILES)


def verdict(visit: Visit, answer: HookAnswer, timeout: float) -> JobPatch | None:
    """What to tell the service; None if the hook has told it all, or was ended because the visit is over."""
    if answer.ending is Ending.CANCELLED or answer.moved:
        return None
    hook = hook_of(visit.state)
    if answer.ending is Ending.TIMEOUT:
        return failure(hook, f"it had not returned after {timeout:g} s (processing.hook_timeout_sec) and was ended")
    if answer.ending is not Ending.RETURNED:
        return failure(hook, answer.error, answer.traceback)
    if hook == INPUT_FILES:
        return JobPatch(state=JobState.STAGED_IN)
    return _checked(visit.state, hook, answer.patch)


def _checked(state: JobState, hook: str, patch: JobPatch) -> JobPatch:
    if patch.state is None:
        return _failed_after(patch, hook, f"it left the job {state}: it has to set self.job.state to {_allowed(state)}")
    try:
        check(state, patch.state, Actor.SITE)
    except IllegalTransition:
        return _failed_after(
            patch, hook, f"it set self.job.state to {patch.state}; from {state} it may set {_allowed(state)}"
        )
    return patch


def _failed_after(patch: JobPatch, hook: str, error: str) -> JobPatch:
    """What the hook has changed stays, but for the state."""
    failed = failure(hook, error)
    return patch.model_copy(update={"state": failed.state, "state_data": failed.state_data})


def failure(hook: str, error: str, traceback: str = "") -> JobPatch:
    """The job fails because of its hook."""
    said = {"hook": hook, "error": error}
    return JobPatch(state=JobState.FAILED, state_data={**said, "traceback": traceback} if traceback else said)


def _allowed(state: JobState) -> str:
    targets = sorted(target for (source, target), who in TRANSITIONS.items() if source is state and Actor.SITE in who)
    return " or ".join(targets)
