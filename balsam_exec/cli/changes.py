"""`balsam job modify` and `balsam job retry`."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from balsam_exec.cli import completion
from balsam_exec.cli.choice import Choice, records
from balsam_exec.cli.common import JsonOption, YesOption, connect, json_list, json_object, json_value
from balsam_exec.model.states import JobState

if TYPE_CHECKING:
    from balsam_exec.client.service import Service
    from balsam_exec.model.jobs import JobPatch, JobRecord

#: What `--set` changes: fields of a JobPatch ...
SCALARS = (
    *("state", "workdir", "stdout", "stderr", "on_parent_failure"),
    *("num_nodes", "ranks_per_node", "threads_per_rank", "threads_per_core", "gpus_per_rank"),
    *("node_packing_count", "wall_time_min"),
)
#: ... JSON objects as a whole, or one key of them as FIELD.KEY ...
OBJECTS = ("tags", "data", "parameters", "launch_params", "state_data")
#: ... and JSON lists.
LISTS = ("parent_ids", "input_files")
FIELDS = (*SCALARS, *OBJECTS, *LISTS)


@dataclass(frozen=True)
class Changes:
    """What is to become of jobs: new values of fields, and of single keys of their objects."""

    fields: dict[str, Any]
    keys: dict[str, dict[str, Any]]

    def patch_of(self, job: JobRecord) -> dict[str, Any]:
        """With the keys that the job has already, and that stay."""
        return {**self.fields, **{name: {**getattr(job, name), **new} for name, new in self.keys.items()}}


def modify(
    chosen: Choice,
    assignments: Annotated[
        list[str],
        typer.Option(
            "--set",
            help="A new value. FIELD.KEY=VALUE sets one key of tags, data, parameters, launch_params; lists and whole "
            "objects are given as JSON.",
            metavar="FIELD=VALUE",
            autocompletion=completion.changes,
        ),
    ],
    yes: YesOption = False,
    json: JsonOption = False,
) -> None:
    """Change jobs: those named, or all that the options choose. Print how many.

    A running job can change its tags, its data and its state, another one also where and how it is to run:
    `balsam job modify 12 --set num_nodes=4 --set tags.kind=large`.
    """
    changes = parse(assignments)
    service = connect()
    filters = chosen.confirmed(service, "Change", yes)
    if changes.keys:
        _say(_patch_each(service, records(service, chosen), changes), json)
    else:
        _say(_patch(service, chosen, filters, changes.fields), json)


def retry(chosen: Choice, yes: YesOption = False, json: JsonOption = False) -> None:
    """Run jobs again that have ended: those named, or all that the options choose; of these only FAILED ones, unless
    --state says otherwise. Print how many.

    Jobs that failed because a parent did wait for it again once it is retried.
    """
    service = connect()
    filters = chosen.confirmed(service, "Retry", yes) if chosen.state or chosen.ids else _failed(service, chosen, yes)
    _say(_patch(service, chosen, filters, {"state": JobState.RESTART_READY}), json)


def _failed(service: Service, chosen: Choice, yes: bool) -> dict[str, Any]:
    chosen.some(service)
    only = Choice(**{**vars(chosen), "state": [JobState.FAILED]})
    return only.confirmed(service, "Retry", yes)


def _say(count: int, json: bool) -> None:
    from balsam_exec.cli.output import print_one
    from balsam_exec.model.base import Count

    print_one(Count(count=count), str(count), json)


def _patch(service: Service, chosen: Choice, filters: dict[str, Any], fields: dict[str, Any]) -> int:
    """The same to all, or to none if one cannot be changed so."""
    from balsam_exec.model.jobs import JobBulkPatch, JobPatch
    from balsam_exec.model.queries import JobQuery

    if ids := chosen.only_ids:
        return service.patch_jobs([JobBulkPatch(id=job_id, **fields) for job_id in dict.fromkeys(ids)])
    patch: JobPatch = JobPatch(**fields)
    return service.update_jobs(JobQuery(**filters), patch)


def _patch_each(service: Service, jobs: list[JobRecord], changes: Changes) -> int:
    """To each what is its own; in as many requests as there have to be, each of them all or nothing."""
    from balsam_exec.model.base import MAX_BULK
    from balsam_exec.model.jobs import JobBulkPatch

    patches = [JobBulkPatch(id=job.id, **changes.patch_of(job)) for job in jobs]
    return sum(service.patch_jobs(patches[start : start + MAX_BULK]) for start in range(0, len(patches), MAX_BULK))


def parse(assignments: list[str]) -> Changes:
    """What `--set` was given. Raises BadParameter for what is not FIELD=VALUE, and for fields that do not change."""
    changes = Changes({}, defaultdict(dict))
    for assignment in assignments:
        target, equals, value = assignment.partition("=")
        field, dot, key = target.partition(".")
        if not equals or not target or (dot and not key):
            raise typer.BadParameter(f"{assignment!r} is not FIELD=VALUE", param_hint="--set")
        if dot and field in OBJECTS and field != "state_data":
            changes.keys[field][key] = json_value(value) if field == "data" else value
        elif dot or field not in FIELDS:
            raise typer.BadParameter(f"{target!r} cannot change; possible: {', '.join(FIELDS)}", param_hint="--set")
        else:
            changes.fields[field] = value if field in SCALARS else _parsed(field, value)
    return changes


def _parsed(field: str, value: str) -> Any:
    return json_object(value, f"--set {field}") if field in OBJECTS else json_list(value, f"--set {field}")
