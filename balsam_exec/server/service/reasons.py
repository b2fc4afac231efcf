"""Why a job is where it is: a pure function from facts to an explanation. `service.explain` gathers the facts."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from balsam_exec.model.apps import HOOK_STEPS
from balsam_exec.model.explain import Cause, Explanation, Reason
from balsam_exec.model.hooks import HOOK_OF
from balsam_exec.model.states import FAILURES, TERMINAL, JobState, OnParentFailure, Step
from balsam_exec.server.service.facts import Facts, Lease
from balsam_exec.server.service.past import STAGING, ended, failure, restarted, where_it_runs
from balsam_exec.server.service.places import SHOWN, Place, fits, why_nowhere
from balsam_exec.server.service.words import ago, are, listed, number, span

#: Seconds without a sign of life after which an agent is said to be away: it gives one every 20.
AGENT_SILENT = 60
#: Jobs that go before it are counted so far.
MANY = 10_000
_S = JobState


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
            found = [*(_held(facts, facts.lease) if facts.lease else _without_place(facts)), *restarted(facts)]
        case _S.RUNNING:
            found = _running(facts)
        case _S.JOB_FINISHED | _S.FAILED | _S.USER_KILLED:
            found = ended(facts)
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
    direction = STAGING[facts.state]
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
    return [reason, *_agent(facts), *failure(facts)]


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
        found.append(_nowhere_it_runs(facts))
    if facts.starting:
        found.append(_starting(facts))
    if facts.queued:
        found.append(_queued(facts))
    return [*found, *(_agent(facts) if facts.unsubmitted else ())]


def _busy(facts: Facts, fitting: Sequence[Place]) -> Reason:
    held = sum(place.held for place in fitting)
    detail = {"ahead": facts.ahead, "held": held, "allocations": len(fitting)}
    allocations = list(dict.fromkeys(place.name for place in fitting))
    names = listed(allocations[:SHOWN], len(allocations))
    launchers = f"the launcher{'s' * (len(fitting) > 1)} of {names}"
    text = f"{_turn(facts.ahead)}, and {number(held, 'job')} {are(held)} with {launchers}"
    return Reason(code=Cause.BUSY, text=text, detail=detail)


def _turn(ahead: int) -> str:
    if not ahead:
        return "it is the next"
    if ahead > MANY:
        return f"more than {MANY:,} jobs of its site are before it"
    return f"{number(ahead, 'job')} of its site {are(ahead)} before it"


def _nowhere_it_runs(facts: Facts) -> Reason:
    detail = {"running": len(facts.starting), "queued": len(facts.queued)}
    text = f"no launcher runs at site {facts.site}"
    if not facts.queued and not facts.starting:
        text += f" and no allocation is queued; request one: balsam queue submit --site {shlex.quote(facts.site)}"
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
    text = f"the launcher of {where_it_runs(lease.batch_job_id)} has it and will start it when there is room there"
    reason = Reason(code=Cause.ASSIGNED, text=text, detail={"batch_job_id": lease.batch_job_id})
    return [*_lease(facts, lease), reason]


def _running(facts: Facts) -> list[Reason]:
    begun = facts.last(_S.RUNNING)
    since = "" if begun is None else f", begun {ago(begun.at, facts.now)}"
    text = f"it runs{since}, in {where_it_runs(facts.batch_job_id)} at site {facts.site}"
    detail = {"batch_job_id": facts.batch_job_id, "since": begun and begun.at.isoformat()}
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


def _since(facts: Facts) -> str:
    return "" if facts.changed is None else f" (for {span((facts.now - facts.changed).total_seconds())})"
