"""Creating jobs in bulk: validated as a whole before anything is stored."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from balsam_exec.model.apps import HOOK_STEPS, ParameterSpec, TransferSlot, check_parameters
from balsam_exec.model.errors import Conflict, NotFound, ParameterError
from balsam_exec.model.events import Kind
from balsam_exec.model.jobs import STDOUT, JobSpec
from balsam_exec.model.states import FAILURES, RUNNABLE, JobState, Step, is_lost, settle, waits_for
from balsam_exec.model.transfers import TransferState
from balsam_exec.server.service.moves import fail_lost, steps_of
from balsam_exec.server.service.sizes import check_size
from balsam_exec.server.service.unit import Unit, hooks_at, tag_marks, work_at
from balsam_exec.server.store import apps as app_store
from balsam_exec.server.store import dialect, keys, schema
from balsam_exec.server.store import jobs as store
from balsam_exec.server.store.types import decode, encode

_FINISHED = JobState.JOB_FINISHED


@dataclass(frozen=True, slots=True)
class AppTerms:
    """What an app and its site ask of a job."""

    site_id: int
    name: str
    steps: Step
    is_command: bool
    parameters: Mapping[str, ParameterSpec]
    slots: Mapping[str, TransferSlot]
    locations: Collection[str]

    @classmethod
    @lru_cache(maxsize=256)  # campaigns are of few apps
    def of(cls, site_id: int, name: str, app_json: str, site_json: str | None) -> AppTerms:
        spec, site = decode(app_json), decode(site_json)
        steps = Step.NONE
        for hook in spec.get("hooks", ()):
            steps |= HOOK_STEPS.get(hook, Step.NONE)
        return cls(
            site_id=site_id,
            name=name,
            steps=steps,
            is_command=spec.get("command_template") is not None,
            parameters={key: ParameterSpec(**value) for key, value in spec.get("parameters", {}).items()},
            slots={key: TransferSlot(**value) for key, value in spec.get("transfers", {}).items()},
            locations=site.get("transfer_locations", {}),
        )

    def check_run(self, parameters: Mapping[str, Any] | None, arguments: bytes | None) -> None:
        """Raise ParameterError unless the app can be run with these; parameters None are those checked before."""
        if self.is_command:
            if parameters is not None:
                check_parameters(self.name, self.parameters, parameters)
            if arguments is not None:
                raise ParameterError(f"{self.name} is a command: it takes parameters, not arguments")
        elif parameters:
            raise ParameterError(f"{self.name} is a Python app: it takes (serialized) arguments, not parameters")

    def check_transfers(self, transfers: Mapping[str, str]) -> None:
        """Raise ParameterError unless every required slot is filled, none is unknown, and each location exists."""
        unknown = sorted(set(transfers) - set(self.slots))
        missing = sorted(name for name, slot in self.slots.items() if slot.required and name not in transfers)
        problems = [f"missing: {', '.join(missing)}"] if missing else []
        problems += [f"unknown: {', '.join(unknown)}"] if unknown else []
        if problems:
            raise ParameterError(f"transfers of {self.name}: {'; '.join(problems)}", missing=missing, unknown=unknown)
        for slot, remote in transfers.items():
            location, colon, path = remote.partition(":")
            if not colon or not path or location not in self.locations:
                known = ", ".join(sorted(self.locations)) or "none"
                raise ParameterError(
                    f"transfer {slot} of {self.name}: {remote!r} is not LOCATION:PATH with a location of its site "
                    f"(transfer_locations: {known})"
                )


def app_terms(unit: Unit, owner_id: int, app_ids: set[int]) -> dict[int, AppTerms]:
    """Raises NotFound, naming those that are not the owner's."""
    rows = app_store.for_jobs(unit.connection, owner_id, app_ids)
    found = {app_id: AppTerms.of(*what) for app_id, *what in rows}
    if absent := sorted(app_ids - set(found)):
        raise NotFound(f"there is no app {', '.join(map(str, absent[:10]))}: sync it first", app_ids=absent[:100])
    return found


def create_jobs(
    unit: Unit, owner_id: int, specs: Sequence[JobSpec], key: str | None = None, digest: bytes = b""
) -> bytes:
    """Store and settle the jobs. The answer, JSON of list[JobCreated]; with a key seen before, the one given then.

    Raises NotFound (an app, a parent), ParameterError, TooLarge, Conflict (the key was used for another request).
    """
    if key is not None and not keys.claim(unit.connection, owner_id, key, digest, unit.now):
        stored_digest, answer = keys.stored(unit.connection, owner_id, key)
        if stored_digest != digest:
            raise Conflict(f"the idempotency key {key!r} was used for another request: use a new one")
        return answer
    terms = app_terms(unit, owner_id, {spec.app_id for spec in specs})
    _check(specs, terms)
    wanted = {parent for spec in specs for parent in spec.parent_ids}
    if wanted:
        dialect.order_families(unit.connection, owner_id)
    parents = parent_states(unit, owner_id, wanted) if wanted else {}
    ids = dialect.reserve_ids(unit.connection, schema.jobs, len(specs)) if specs else ()
    states = _store(unit, owner_id, ids, specs, terms, parents)
    answer = b"[" + b",".join(b'{"id":%d,"state":"%s"}' % pair for pair in zip(ids, states, strict=True)) + b"]"
    if key is not None:
        keys.answer(unit.connection, owner_id, key, answer)
    return answer


def _check(specs: Sequence[JobSpec], terms: Mapping[int, AppTerms]) -> None:
    for index, spec in enumerate(specs):
        app = terms[spec.app_id]
        try:
            app.check_run(spec.parameters, spec.arguments)
            if spec.transfers or app.slots:
                app.check_transfers(spec.transfers)
        except ParameterError as error:
            raise ParameterError(f"job {index} of the request: {error.message}", index=index, **error.detail) from None


def parent_states(unit: Unit, owner_id: int, wanted: Set[int]) -> dict[int, JobState]:
    """States that stay until the transaction ends. Raises NotFound, naming what is not the owner's."""
    found = store.parent_states(unit.connection, owner_id, wanted)
    if absent := sorted(wanted - set(found)):
        raise NotFound(f"there is no job {', '.join(map(str, absent[:10]))} to be a parent", job_ids=absent[:100])
    return found


def _store(
    unit: Unit,
    owner_id: int,
    ids: Sequence[int],
    specs: Sequence[JobSpec],
    terms: Mapping[int, AppTerms],
    parents: Mapping[int, JobState],
) -> list[bytes]:
    """Insert everything about the jobs; the states they came to."""
    now = unit.now
    rows, payloads, tags, edges, transfers, lost = [], [], [], [], [], []
    states = dict.fromkeys(ids, b"")
    for index, (job_id, spec) in enumerate(zip(ids, specs, strict=True)):
        data, parameters = _encoded(index, spec, unit.max_entity)
        app = terms[spec.app_id]
        steps = app.steps
        if spec.transfers:
            steps = steps_of(steps, (app.slots[slot].direction for slot in spec.transfers))
        pending = failed = waiting = 0
        if spec.parent_ids:
            unique = set(spec.parent_ids)
            edges += [(parent, job_id) for parent in unique]
            pending = sum(parents[parent] is not _FINISHED for parent in unique)
            failed = sum(parents[parent] in FAILURES for parent in unique)
            waiting = waits_for(spec.on_parent_failure, pending, failed)
            if is_lost(spec.on_parent_failure, failed):
                lost.append(job_id)
            if spec.input_files:
                steps |= Step.INPUT_FILES
        state = settle(JobState.CREATED, steps, waiting)
        marks = tag_marks(spec.tags) if spec.tags else 0
        unit.tags[job_id] = spec.tags
        rows.append(
            (
                *(job_id, owner_id, app.site_id, spec.app_id, state.value, -spec.wall_time_min, int(steps), pending, 0),
                *(spec.num_nodes, spec.ranks_per_node, spec.threads_per_rank, spec.threads_per_core),
                *(spec.gpus_per_rank, spec.node_packing_count, spec.wall_time_min, marks, now, now),
                *(spec.on_parent_failure.value, failed, None),
            )
        )
        payloads.append(
            (
                *(job_id, spec.workdir, encode(spec.tags), data, parameters),
                *(encode(spec.launch_params), encode(spec.transfers), spec.arguments),
                *(None if spec.stdout == STDOUT else spec.stdout, spec.stderr or None, encode(spec.input_files)),
            )
        )
        if spec.tags:
            tags += [(owner_id, key, value, job_id) for key, value in spec.tags.items()]
        if spec.transfers:
            transfers += [_transfer(owner_id, job_id, app, state, *item) for item in spec.transfers.items()]
        unit.record(owner_id, Kind.JOB, job_id, app.site_id, JobState.CREATED, state, marks=marks)
        unit.count(owner_id, app.site_id, state, 1)
        if state in RUNNABLE:
            unit.topics.add(work_at(app.site_id))
        elif steps:
            unit.topics.add(hooks_at(app.site_id))
        states[job_id] = state.value.encode()
    store.insert_jobs(unit.connection, rows, payloads, tags, edges)
    store.insert_transfers(unit.connection, transfers)
    if lost:
        fail_lost(unit, owner_id, lost)
        states.update(dict.fromkeys(lost, JobState.FAILED.value.encode()))
    return list(states.values())


def _encoded(index: int, spec: JobSpec, limit: int) -> tuple[str | None, str | None]:
    """A job's data and parameters as JSON. Raises TooLarge, also for its arguments."""
    data, parameters = encode(spec.data), encode(spec.parameters)
    if data or parameters or spec.arguments:
        for what, entity in (("arguments", spec.arguments), ("parameters", parameters), ("data", data)):
            check_size(f"the {what} of job {index} of the request", entity, limit)
    return data, parameters


def _transfer(owner_id: int, job_id: int, app: AppTerms, state: JobState, name: str, remote: str) -> dict[str, Any]:
    slot = app.slots[name]
    location, _, path = remote.partition(":")
    may_start = slot.direction == "in" and state is JobState.READY
    return {
        "owner_id": owner_id,
        "job_id": job_id,
        "site_id": app.site_id,
        "slot": name,
        "direction": slot.direction,
        "location": location,
        "remote_path": path,
        "local_path": slot.local_path,
        "recursive": slot.recursive,
        "state": (TransferState.PENDING if may_start else TransferState.AWAITING_JOB).value,
    }
