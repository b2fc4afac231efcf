"""Why a job is where it is: a pure function from facts to an explanation. `service.explain` gathers the facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import takewhile
from typing import Any

from balsam_exec.model.apps import HOOK_STEPS
from balsam_exec.model.base import Json
from balsam_exec.model.explain import Cause, Explanation, Reason
from balsam_exec.model.hooks import HOOK_OF
from balsam_exec.model.states import FAILURES, TERMINAL, JobState, OnParentFailure, Step
from balsam_exec.server.service.places import SHOWN, Demand, Place, fits, why_nowhere
from balsam_exec.server.service.words import ago, are, listed, number, span

#: Seconds without a sign of life after which an agent is said to be away: it gives one every 20.
AGENT_SILENT = 60
_S = JobState
#: Jobs that go before it are counted so far.
MANY = 10_000
#: Before it in the history is another run.
_BEGINS = (_S.RUNNING, _S.RESTART_READY)
#: What a site calls the copying of files from parents, in the event of its failure.
_INPUT_FILES = "input_files"
_STAGING: Mapping[str, str] = {_S.READY: "in", _S.POSTPROCESSED: "out"}


@dataclass(frozen=True, slots=True)
class Happened:
    """One event of the job."""

    source: str
    target: str
    at: datetime
    data: Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Of the launcher that holds the job."""

    batch_job_id: int | None
    heard: datetime  #: when its launcher was last heard of
    expires: datetime
    kill_ordered: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What may keep a job where it is. What has no bearing on its state need not be there."""

    now: datetime
    job_id: int
    state: JobState
    steps: Step = Step.NONE
    demand: Demand
    app: str = "app"
    site: str = "site"
    agent_heard: datetime | None = None
    changed: datetime | None = None  #: the job, at last
    batch_job_id: int | None = None  #: that ran it last
    return_code: int | None = None
    lease: Lease | None = None
    on_parent_failure: OnParentFailure = OnParentFailure.FAIL
    parents: Mapping[JobState, int] = field(default_factory=dict)  #: how many are in each state
    waiting_for: Sequence[tuple[int, JobState]] = ()  #: some parents, those that failed first
    transfers: Sequence[tuple[int, str, str]] = ()  #: (id, state, error) of those that are not done
    queue: int = 0  #: of the site's jobs, how many are in this state
    places: Sequence[Place] = ()  #: with a launcher
    starting: Sequence[Place] = ()  #: running, but without a launcher
    queued: Sequence[Place] = ()
    unsubmitted: int = 0  #: of the queued, those that the agent has yet to submit
    ahead: int = 0  #: runnable jobs of the site that go before it
    history: Sequence[Happened] = ()  #: the latest events, the last one first


def explain(facts: Facts) -> Explanation:
    reasons = _reasons(facts)
    text = "; ".join(reason.text for reason in reasons)
    summary = f"job {facts.job_id} is {facts.state}: {text}"
    return Explanation(job_id=facts.job_id, state=facts.state, summary=summary, reasons=reasons)


def _reasons(facts: Facts) -> list[Reason]:
    match facts.state:
        case _S.AWAITING_PARENTS:
            found = _parents(facts)
        case _S.READY | _S.POSTPROCESSED:
            found = _staging(facts)
        case _S.PREPROCESSED | _S.RESTART_READY:
            found = [*(_held(facts, facts.lease) if facts.lease else _without_place(facts)), *_restarted(facts)]
        case _S.RUNNING:
            found = _running(facts)
        case _S.JOB_FINISHED | _S.FAILED | _S.USER_KILLED:
            found = _ended(facts)
        case _:
            found = _hook(facts)
    return found or [Reason(code=Cause.BETWEEN_STATES, text="it waits for nothing and leaves this state at once")]


# --- before a launcher may have it


def _parents(facts: Facts) -> list[Reason]:
    total = sum(facts.parents.values())
    waits_for_failed = facts.on_parent_failure is not OnParentFailure.RUN
    failed = {state: count for state, count in facts.parents.items() if state in FAILURES and waits_for_failed}
    pending = {state: count for state, count in facts.parents.items() if state not in TERMINAL}
    found = []
    if failed:
        found.append(_some_parents(Cause.PARENT_FAILED, "ended without success", facts, failed, total))
    if pending:
        found.append(_some_parents(Cause.PARENTS_PENDING, "yet to finish", facts, pending, total))
    return found


def _some_parents(cause: Cause, what: str, facts: Facts, counts: Mapping[JobState, int], total: int) -> Reason:
    some = [(one, state) for one, state in facts.waiting_for if state in counts]
    count = sum(counts.values())
    names = listed([f"{one} ({state})" for one, state in some], count)
    some_of_many = f"{count:,} of its {total:,} parents" if count < total else f"all its {total:,} parents"
    which = "its parent" if total == 1 else some_of_many
    text = f"{which} {'have' if count > 1 else 'has'} {what}: {names}"
    detail = {"parents": total, "states": {state.value: n for state, n in counts.items()}, "ids": [i for i, _ in some]}
    return Reason(code=cause, text=text, detail=detail)


def _staging(facts: Facts) -> list[Reason]:
    direction = _STAGING[facts.state]
    found = []
    failed = [(one, error) for one, state, error in facts.transfers if state == "failed"]
    if failed:
        said = listed([f"{one}{error and f' ({error})'}" for one, error in failed[:SHOWN]], len(failed))
        text = f"{number(len(failed), 'transfer')} to stage {direction} failed: {said}"
        found.append(Reason(code=Cause.TRANSFER_FAILED, text=text, detail={"ids": [one for one, _ in failed]}))
    if pending := len(facts.transfers) - len(failed):
        active = sum(state == "active" for _, state, _ in facts.transfers)
        text = f"{number(pending, 'transfer')} to stage {direction} {are(pending)} not done yet"
        detail = {"transfers": pending, "active": active}
        found.append(Reason(code=Cause.TRANSFERS_PENDING, text=f"{text} ({active} active)", detail=detail))
    if facts.state is _S.READY and facts.steps & Step.INPUT_FILES:
        text = f"site {facts.site} is yet to copy its input files from its parents{_since(facts)}"
        found.append(Reason(code=Cause.INPUT_FILES_PENDING, text=text))
    return [*found, *_agent(facts)] if found else []


def _hook(facts: Facts) -> list[Reason]:
    hook = HOOK_OF.get(facts.state, "")
    if not facts.steps & HOOK_STEPS.get(hook, Step.NONE):
        return []
    others = f", as is the case for {number(facts.queue - 1, 'other job')}" if facts.queue > 1 else ""
    text = f"site {facts.site} is yet to run {hook} of {facts.app}{_since(facts)}{others}"
    reason = Reason(code=Cause.HOOK_PENDING, text=text, detail={"hook": hook, "jobs": facts.queue})
    return [*_failure(facts), reason, *_agent(facts)]


def _agent(facts: Facts) -> list[Reason]:
    """Whether who has to do it at the site is there."""
    heard = facts.agent_heard
    seconds = None if heard is None else round((facts.now - heard).total_seconds())
    if seconds is not None and seconds <= AGENT_SILENT:
        return []
    when = "was never heard of" if heard is None else f"was last heard of {ago(heard, facts.now)}"
    text = f"the agent of site {facts.site} {when}; on its machine: balsam site start"
    detail = {"last_refresh": heard and heard.isoformat(), "seconds": seconds}
    return [Reason(code=Cause.AGENT_AWAY, text=text, detail=detail)]


# --- runnable


def _without_place(facts: Facts) -> list[Reason]:
    fitting = [place for place in facts.places if fits(facts.demand, place)]
    if fitting:
        return [_busy(facts, fitting)]
    found = why_nowhere(facts.demand, facts.places)
    if not facts.places:
        found.append(_no_allocation(facts))
    if facts.starting:
        found.append(_starting(facts))
    if facts.queued:
        found.append(_queued(facts))
    return [*found, *(_agent(facts) if facts.unsubmitted else ())]


def _busy(facts: Facts, fitting: Sequence[Place]) -> Reason:
    held = sum(place.held for place in fitting)
    detail = {"ahead": facts.ahead, "held": held, "allocations": len(fitting)}
    names = listed([place.name for place in fitting[:SHOWN]], len(fitting))
    launchers = f"the launcher{'s' * (len(fitting) > 1)} of {names}"
    text = f"{_turn(facts.ahead)}, and {number(held, 'job')} {are(held)} with {launchers}"
    return Reason(code=Cause.BUSY, text=text, detail=detail)


def _turn(ahead: int) -> str:
    if not ahead:
        return "it is the next"
    if ahead > MANY:
        return f"more than {MANY:,} jobs of its site are before it"
    return f"{number(ahead, 'job')} of its site {are(ahead)} before it"


def _no_allocation(facts: Facts) -> Reason:
    detail = {"running": len(facts.starting), "queued": len(facts.queued)}
    text = f"no launcher runs at site {facts.site}"
    if not facts.queued and not facts.starting:
        text += f" and no allocation is queued; request one: balsam queue submit --site {facts.site}"
    return Reason(code=Cause.NO_ALLOCATION, text=text, detail=detail)


def _starting(facts: Facts) -> Reason:
    names = listed([place.name for place in facts.starting[:SHOWN]], len(facts.starting))
    text = f"{names} {are(len(facts.starting))} running, but no launcher there was heard of yet"
    return Reason(code=Cause.LAUNCHER_STARTING, text=text, detail={"allocations": len(facts.starting)})


def _queued(facts: Facts) -> Reason:
    total = len(facts.queued)
    fitting = [place for place in facts.queued if fits(facts.demand, place)]
    detail = {"queued": total, "fitting": len(fitting), "unsubmitted": facts.unsubmitted}
    if fitting:
        names = listed([place.name for place in fitting[:SHOWN]], len(fitting))
        text = f"{number(total, 'allocation')} {are(total)} queued, and it may run in {names}"
    else:
        other = "; ".join(reason.code for reason in why_nowhere(facts.demand, facts.queued))
        text = f"{number(total, 'allocation')} {are(total)} queued, and it fits in none ({other})"
    if facts.unsubmitted:
        text += f"; {facts.unsubmitted} of them {are(facts.unsubmitted)} yet to be submitted"
    return Reason(code=Cause.ALLOCATION_QUEUED, text=text, detail=detail)


# --- with a launcher


def _held(facts: Facts, lease: Lease) -> list[Reason]:
    text = f"the launcher of {_allocation(lease.batch_job_id)} has it and will start it when there is room there"
    reason = Reason(code=Cause.ASSIGNED, text=text, detail={"batch_job_id": lease.batch_job_id})
    return [*_lease(facts, lease), reason]


def _running(facts: Facts) -> list[Reason]:
    begun = next((one.at for one in facts.history if one.target == _S.RUNNING), None)
    since = "" if begun is None else f", begun {ago(begun, facts.now)}"
    text = f"it runs{since}, in {_allocation(facts.batch_job_id)} at site {facts.site}"
    detail = {"batch_job_id": facts.batch_job_id, "since": begun and begun.isoformat()}
    reason = Reason(code=Cause.RUNNING, text=text, detail=detail)
    return [*(_lease(facts, facts.lease) if facts.lease else ()), reason]


def _lease(facts: Facts, lease: Lease) -> list[Reason]:
    found = []
    if lease.kill_ordered:
        text = "its owner killed it, and its launcher is to say when nothing is left of it"
        found.append(Reason(code=Cause.KILL_ORDERED, text=text))
    quiet = (facts.now - lease.heard).total_seconds()
    left = (lease.expires - facts.now).total_seconds()
    if left < quiet:
        then = f"in {span(left)} it will be free for others" if left > 0 else "it is about to be free for others"
        text = f"its launcher was last heard of {span(quiet)} ago; {then}"
        detail = {"seconds": round(quiet), "left": round(left)}
        found.append(Reason(code=Cause.LAUNCHER_SILENT, text=text, detail=detail))
    return found


def _allocation(batch_job_id: int | None) -> str:
    return "a launcher without a batch job" if batch_job_id is None else f"batch job {batch_job_id}"


# --- what has happened


def _restarted(facts: Facts) -> list[Reason]:
    """It ran before: why it is to run again."""
    if facts.state is not _S.RESTART_READY:
        return []
    back = next((number for number, one in enumerate(facts.history) if one.target == _S.RESTART_READY), None)
    if back is None:
        return []
    source = facts.history[back].source
    last_run = list(takewhile(lambda one: one.target not in _BEGINS, facts.history[back + 1 :]))
    why = next(filter(None, (_brief(_said(one.data)) for one in (facts.history[back], *last_run))), "")
    text = f"it was {source} before{why and f' ({why})'}, and is to run again"
    return [Reason(code=Cause.RESTARTED, text=text, detail={"from": source, "error": why})]


def _ended(facts: Facts) -> list[Reason]:
    last = next((one for one in facts.history if one.target == facts.state), None)
    when = "" if last is None else f" {ago(last.at, facts.now)}"
    detail: dict[str, Any] = {"at": last and last.at.isoformat(), "batch_job_id": facts.batch_job_id}
    if facts.state is _S.JOB_FINISHED:
        text = f"it finished{when}{_run_time(facts)}"
        return [Reason(code=Cause.FINISHED, text=text, detail=detail)]
    if facts.state is _S.USER_KILLED:
        why = _brief(_said(last.data)) if last else ""
        return [Reason(code=Cause.KILLED, text=f"{why or 'it was killed'}{when}", detail=detail)]
    return _failure(facts)


def _failure(facts: Facts) -> list[Reason]:
    """What went wrong since it was last to run: the run itself, then what followed."""
    last_run = takewhile(lambda one: one.target not in _BEGINS, facts.history)
    found = [reason for one in last_run if (reason := _mishap(facts, one))]
    return found[::-1]


def _mishap(facts: Facts, one: Happened) -> Reason | None:
    said, when = _said(one.data), ago(one.at, facts.now)
    brief = _brief(said)
    detail = {**one.data, "at": one.at.isoformat(), "batch_job_id": facts.batch_job_id}
    if one.target == _S.RUN_ERROR:
        code = one.data.get("return_code", facts.return_code)
        how = "" if code is None or said else f" with exit code {code}"
        where = "" if facts.batch_job_id is None else f" in batch job {facts.batch_job_id}"
        text = f"its run failed{how} {when}{where}{brief and f': {brief}'}"
        return Reason(code=Cause.RUN_FAILED, text=text, detail=detail)
    if one.target == _S.RUN_TIMEOUT:
        return Reason(code=Cause.RUN_TIMED_OUT, text=f"its run was ended {when}{brief and f': {brief}'}", detail=detail)
    if one.target != _S.FAILED:
        return None
    hook = HOOK_OF.get(JobState(one.source), "")
    if one.source == _S.AWAITING_PARENTS:
        return Reason(code=Cause.PARENT_FAILED, text=brief or f"a parent of it failed {when}", detail=detail)
    if one.source in _STAGING:
        what = "copied from its parents" if one.data.get("hook") == _INPUT_FILES else f"staged {_STAGING[one.source]}"
        text = f"its files could not be {what} {when}{brief and f': {brief}'}"
        return Reason(code=Cause.TRANSFER_FAILED, text=text, detail=detail)
    if facts.steps & HOOK_STEPS.get(hook, Step.NONE):
        text = f"{hook} of {facts.app} failed it {when}{brief and f': {brief}'}"
        return Reason(code=Cause.HOOK_FAILED, text=text, detail={**detail, "hook": hook})
    if one.source == _S.RUN_ERROR:
        return None  # that its run failed says it all
    text = f"its state was set to FAILED {when}{brief and f': {brief}'}"
    return Reason(code=Cause.SET_FAILED, text=text, detail=detail)


def _run_time(facts: Facts) -> str:
    begun = next((one.at for one in facts.history if one.target == _S.RUNNING), None)
    over = next((one.at for one in facts.history if one.target == _S.RUN_DONE), None)
    if begun is None or over is None:
        return ""
    return f", after a run of {span((over - begun).total_seconds())} in {_allocation(facts.batch_job_id)}"


def _since(facts: Facts) -> str:
    return "" if facts.changed is None else f" (for {span((facts.now - facts.changed).total_seconds())})"


def _said(data: Json) -> str:
    """What an event says went wrong."""
    return "; ".join(str(data[key]) for key in ("error", "reason", "message") if data.get(key)).strip()


def _brief(text: str) -> str:
    """One line of a text that says the most: how it begins and ends; of a traceback its end."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return ""
    ends = lines[-1:] if lines[0].startswith("Traceback") else dict.fromkeys((lines[0], lines[-1]))
    line = ": ".join(ends)
    return line if len(line) <= 200 else line[:197] + "..."
