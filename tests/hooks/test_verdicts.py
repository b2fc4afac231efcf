"""What becomes of a job after its hook: decisions without any of it happening."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from balsam_exec.hooks.calls import Ending, HookAnswer
from balsam_exec.model.hooks import AT_SITE, Visit
from balsam_exec.model.jobs import JobPatch
from balsam_exec.model.states import TRANSITIONS, Actor, JobState
from balsam_exec.site.verdicts import hook_of, verdict

S = JobState


def decided(state: JobState, ending: Ending = Ending.RETURNED, **answer: Any) -> JobPatch | None:
    return verdict(Visit(1, 0, state), HookAnswer(ending=ending, **answer), timeout=5)


@pytest.mark.parametrize(("state", "target"), list(product(sorted(AT_SITE - {S.READY}), JobState)))
def test_a_hook_may_set_what_a_site_may(state: JobState, target: JobState) -> None:
    patch = JobPatch(state=target, state_data={"a": 1}, data={"b": 2})
    found = decided(state, patch=patch)
    if Actor.SITE in TRANSITIONS.get((state, target), ()):
        assert found == patch
        return
    assert found is not None
    assert found.state is S.FAILED
    assert found.data == {"b": 2}, "what else it changed stays"
    assert found.state_data is not None
    assert found.state_data["hook"] == hook_of(state)
    assert f"it set self.job.state to {target}; from {state} it may set " in found.state_data["error"]


@pytest.mark.parametrize("state", sorted(AT_SITE - {S.READY}))
def test_a_hook_that_sets_no_state(state: JobState) -> None:
    found = decided(state, patch=JobPatch(tags={"x": "y"}))
    assert found is not None
    assert (found.state, found.tags) == (S.FAILED, {"x": "y"})
    assert found.state_data is not None
    assert f"it left the job {state}: it has to set self.job.state to" in found.state_data["error"]


@pytest.mark.parametrize("state", sorted(AT_SITE))
@pytest.mark.parametrize("ending", [Ending.RAISED, Ending.BROKEN, Ending.DIED])
def test_a_hook_that_goes_wrong(state: JobState, ending: Ending) -> None:
    found = decided(state, ending, error="no", traceback="its end", patch=JobPatch(data={"lost": 1}))
    said = {"hook": hook_of(state), "error": "no", "traceback": "its end"}
    assert found == JobPatch(state=S.FAILED, state_data=said)


def test_a_hook_that_took_too_long() -> None:
    found = decided(S.RUN_DONE, Ending.TIMEOUT, error="it was ended")
    error = "it had not returned after 5 s (processing.hook_timeout_sec) and was ended"
    assert found == JobPatch(state=S.FAILED, state_data={"hook": "postprocess", "error": error})


def test_nothing_is_to_be_told() -> None:
    """Of a hook that has saved its job, and of one that was ended because the job left its state."""
    assert decided(S.STAGED_IN, moved=True) is None
    assert decided(S.STAGED_IN, Ending.CANCELLED, error="it was ended") is None


def test_files_are_there() -> None:
    assert decided(S.READY) == JobPatch(state=S.STAGED_IN)
