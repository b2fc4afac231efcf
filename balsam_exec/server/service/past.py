"""What has become of a job: how it ended, what went wrong, why it runs again. Pure, over the events of the job."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

from balsam_exec.model.apps import HOOK_STEPS
from balsam_exec.model.base import Json
from balsam_exec.model.explain import Cause, Reason
from balsam_exec.model.hooks import HOOK_OF, INPUT_FILES
from balsam_exec.model.states import JobState
from balsam_exec.server.service.facts import Facts, Happened
from balsam_exec.server.service.words import ago, span

_S = JobState
#: Where files are staged, and in which direction.
STAGING = {_S.READY: "in", _S.POSTPROCESSED: "out"}
#: Before it in the history is another run.
_BEGINS = (_S.RUNNING, _S.RESTART_READY)
_LONGEST = 200


def ended(facts: Facts) -> list[Reason]:
    """How a job ended that has."""
    if facts.state is _S.FAILED:
        return failure(facts) or [Reason(code=Cause.SET_FAILED, text="it failed, and no event of it says why")]
    last = facts.last(facts.state)
    when = "" if last is None else f" {ago(last.at, facts.now)}"
    detail: dict[str, Any] = {"at": last and last.at.isoformat(), "batch_job_id": facts.batch_job_id}
    if facts.state is _S.JOB_FINISHED:
        return [Reason(code=Cause.FINISHED, text=f"it finished{when}{_run_time(facts)}", detail=detail)]
    why = _brief(last.data) if last else ""
    return [Reason(code=Cause.KILLED, text=f"{why or 'it was killed'}{when}", detail=detail)]


def _run_time(facts: Facts) -> str:
    begun, over = facts.last(_S.RUNNING), facts.last(_S.RUN_DONE)
    if begun is None or over is None:
        return ""
    return f", after a run of {span((over.at - begun.at).total_seconds())} in {where_it_runs(facts.batch_job_id)}"


def where_it_runs(batch_job_id: int | None) -> str:
    return "a launcher without a batch job" if batch_job_id is None else f"batch job {batch_job_id}"


def restarted(facts: Facts) -> list[Reason]:
    """Why a job is to run again that ran before."""
    numbers = (number for number, one in enumerate(facts.history) if one.target == _S.RESTART_READY)
    if facts.state is not _S.RESTART_READY or (number := next(numbers, None)) is None:
        return []
    back, *before = facts.history[number:]
    last_run = takewhile(lambda one: one.target not in _BEGINS, before)
    why = next(filter(None, (_brief(one.data) for one in (back, *last_run))), "")
    text = f"it was {back.source} before{why and f' ({why})'}, and is to run again"
    detail = {"from": back.source, "error": why, "retry": back.data.get("retry")}
    return [Reason(code=Cause.RESTARTED, text=text, detail=detail)]


def failure(facts: Facts) -> list[Reason]:
    """What went wrong since it was last to run: the run itself, then what followed."""
    last_run = takewhile(lambda one: one.target not in _BEGINS, facts.history)
    found = [reason for one in last_run if (reason := _mishap(facts, one))]
    return found[::-1]


def _mishap(facts: Facts, one: Happened) -> Reason | None:
    """What an event says went wrong, if it does."""
    match one.target:
        case _S.RUN_ERROR:
            what = _failed_run(facts, one)
        case _S.RUN_TIMEOUT:
            what = Cause.RUN_TIMED_OUT, "its run was ended", ""
        case _S.FAILED if not (one.source == _S.RUN_ERROR and not _has_hook(facts, one.source)):
            what = _failed_job(facts, one)
        case _:
            return None  # nothing, or what the event before it says already
    cause, text, where = what
    brief = _brief(one.data)
    detail = {**one.data, "at": one.at.isoformat(), "batch_job_id": facts.batch_job_id}
    if cause is Cause.PARENT_FAILED and brief:
        return Reason(code=cause, text=brief, detail=detail)
    said = f"{text} {ago(one.at, facts.now)}{where}{brief and f': {brief}'}"
    return Reason(code=cause, text=said, detail=detail)


def _failed_run(facts: Facts, one: Happened) -> tuple[Cause, str, str]:
    code = one.data.get("return_code", facts.return_code)
    how = "" if code is None or _brief(one.data) else f" with exit code {code}"
    where = "" if facts.batch_job_id is None else f" in {where_it_runs(facts.batch_job_id)}"
    return Cause.RUN_FAILED, f"its run failed{how}", where


def _failed_job(facts: Facts, one: Happened) -> tuple[Cause, str, str]:
    """Who failed it, by the state that it was in."""
    source = JobState(one.source)
    if source is _S.AWAITING_PARENTS:
        return Cause.PARENT_FAILED, "a parent of it failed", ""
    if source in STAGING:
        what = "copied from its parents" if one.data.get("hook") == INPUT_FILES else f"staged {STAGING[source]}"
        return Cause.TRANSFER_FAILED, f"its files could not be {what}", ""
    if _has_hook(facts, source):
        return Cause.HOOK_FAILED, f"{HOOK_OF[source]} of {facts.app} failed it", ""
    return Cause.SET_FAILED, "its state was set to FAILED", ""


def _has_hook(facts: Facts, state: str) -> bool:
    hook = HOOK_OF.get(JobState(state))
    return hook is not None and bool(facts.steps & HOOK_STEPS[hook])


def _brief(data: Json) -> str:
    """One line of what an event says went wrong: how that begins and ends; of a traceback its end."""
    said = "; ".join(str(data[key]) for key in ("error", "reason", "message") if data.get(key))
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if not lines:
        return ""
    ends = lines[-1:] if lines[0].startswith("Traceback") else dict.fromkeys((lines[0], lines[-1]))
    line = ": ".join(ends)
    return line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..."
