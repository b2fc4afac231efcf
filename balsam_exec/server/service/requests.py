"""What batch jobs ask for: whether their site allows it, how it changes until they run, and what then holds. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from balsam_exec.model.allowed import Allowed
from balsam_exec.model.batch_jobs import AllocationRequest, BatchJobPatch, BatchJobRecord, BatchJobSpec
from balsam_exec.model.errors import Conflict, InvalidRequest, NotAllowed
from balsam_exec.model.states import BatchJobState

#: What a user may change, and as long as what.
WANTED = frozenset(BatchJobSpec.model_fields) & frozenset(BatchJobPatch.model_fields)
CHANGEABLE = frozenset({BatchJobState.PENDING_SUBMISSION, BatchJobState.QUEUED})
#: Before it goes to one of these it may be that the scheduler is yet to be told; in these it has what it has.
_WAITING = CHANGEABLE | {BatchJobState.PENDING_DELETION}
_TOO_LATE = {BatchJobState.RUNNING: "it started", BatchJobState.FINISHED: "it ended"}


@dataclass(frozen=True)
class Change:
    """Fields of a batch job to be set, and what is to be said of it in the log."""

    values: dict[str, Any]
    data: dict[str, Any]


def check_allowed(site_name: str, allowed: Allowed, request: AllocationRequest, others: int) -> None:
    """Raises NotAllowed."""
    if problems := allowed.problems(request, others):
        raise NotAllowed(f"site {site_name} does not allow this: {'; '.join(problems)}", problems=problems)


def changed_by_user(record: BatchJobRecord, patch: BatchJobPatch) -> BatchJobSpec | None:
    """What is to be asked for from now on, if the patch changes that. Raises Conflict once it cannot be changed any
    more, InvalidRequest."""
    before = spec_of(record)
    given = {name: value for name in WANTED if (value := getattr(patch, name)) is not None}
    changed = sorted(name for name, value in given.items() if value != getattr(before, name))
    if not changed:
        return None
    if record.state not in CHANGEABLE:
        raise Conflict(
            f"{', '.join(changed)} of batch job {record.id} cannot change any more: it is {record.state}, and that is "
            "possible only while it is pending_submission or queued",
            state=record.state.value,
        )
    try:
        return BatchJobSpec.model_validate({**before.model_dump(), **patch.model_dump(include=set(given))})
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise InvalidRequest("; ".join(problems)) from None


def change(record: BatchJobRecord, wanted: BatchJobSpec) -> Change:
    """Have it ask for something else. What is told of a change before this one holds no more."""
    before, after = spec_of(record).model_dump(), wanted.model_dump()
    changed = {name: value for name, value in after.items() if value != before[name]}
    info = {key: value for key, value in record.status_info.items() if key != "refused"}
    values = {**changed, "status_info": info} if info != record.status_info else changed
    return Change(values, {"changed": {name: [before[name], value] for name, value in changed.items()}})


def settled(record: BatchJobRecord, patch: BatchJobPatch) -> Change | None:
    """What is left of changes that did not come about: the scheduler has refused them, or it has started before."""
    submitted = patch.submitted or record.submitted
    late = _TOO_LATE.get(patch.state) if patch.state is not None and record.state in _WAITING else None
    refused = patch.refused is not None and not patch.refused.changes(record)
    if submitted is None or not (late or refused) or not submitted.changes(record):
        return None
    kept = submitted.stays(record)
    back: dict[str, Any] = submitted.model_dump(include=set(submitted.changes(record)))
    if sum(partition.num_nodes for partition in record.partitions) > submitted.num_nodes:
        back["partitions"] = [partition.model_dump() for partition in submitted.partitions]
        kept += ", and partitions as they were"
    info = record.status_info if patch.status_info is None else patch.status_info
    why = f"{late} before that could be changed" if late else info.get("refused", "no reason given")
    words = f"{kept}: {why}"
    return Change({**back, "status_info": {**info, "refused": words}}, {"refused": words})


def spec_of(record: BatchJobRecord) -> BatchJobSpec:
    return BatchJobSpec.model_construct(**{name: getattr(record, name) for name in BatchJobSpec.model_fields})


def allowed_of(settings: Mapping[str, Any]) -> Allowed:
    """Of what a site's record has in `settings`."""
    return Allowed.model_validate({name: settings[name] for name in Allowed.model_fields if name in settings})
