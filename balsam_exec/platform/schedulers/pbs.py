"""PBS Pro and OpenPBS, through qsub, qstat, qselect, qalter, qmove and qdel."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from balsam_exec.platform.schedulers.base import (
    ModifyRefused,
    SchedulerState,
    SchedulerUnavailable,
    Status,
    SubmitSpec,
)
from balsam_exec.platform.schedulers.commands import CommandScheduler, chosen, ended, seconds, value_of

_QUEUED = frozenset("HQTW")
_RUNNING = frozenset("BERSU")
_ENDED = frozenset("FX")
#: Exit statuses of PBS itself.
_KILLED_BY_PBS = {
    -26: "it used too much virtual memory",
    -27: "it used too much memory",
    -28: "it used too much CPU time",
    -29: "it reached its wall time",
}
#: Added to the number of the signal that ended the script.
_SIGNALLED = 256
#: Not the token: PBS shows the variables of a job to everybody. Launchers read it from the credentials file.
_VARIABLES = ("BALSAM_HOME", "BALSAM_URL", "BALSAM_SITE")


class PbsScheduler(CommandScheduler):
    """The tag of a submission is its name. Optional parameters are resources: `-l name=value`."""

    prefix = "#PBS"
    job_id = re.compile(r"^(\d+\.[A-Za-z][\w.-]*)$", re.MULTILINE)
    away = re.compile(r"cannot connect|Connection refused|timed? ?out|server is (busy|shutting down)", re.IGNORECASE)
    reserved = frozenset({"walltime", "nodes"})

    def options(self, spec: SubmitSpec) -> list[str]:
        hours, minutes = divmod(spec.wall_time_min, 60)
        place = {"select": spec.num_nodes, "place": "scatter:excl", "walltime": f"{hours:02}:{minutes:02}:00"}
        resources = {**place, **spec.optional_params}
        return [
            *(f"-l {name}={value}" for name, value in resources.items()),
            *(f"{option} {name}" for option, name in (("-q", spec.queue), ("-A", spec.project)) if chosen(name)),
        ]

    def is_reserved(self, name: str, value: str, spec: SubmitSpec) -> bool:
        """Chunks of nodes (select) are fine as long as they are as many nodes; a comma would begin another resource."""
        if super().is_reserved(name, value, spec) or re.search(r",\s*\w+=", value):
            return True
        return name == "select" and _nodes(value) != spec.num_nodes

    def submit_command(self, script: Path, spec: SubmitSpec) -> list[str]:
        variables = [name for name in _VARIABLES if name in os.environ]
        hand_on = ["-v", ",".join(variables)] if variables else []
        output = ["-j", "oe", "-o", str(spec.log.absolute())]
        return ["qsub", "-N", self.tag(spec.key), "-r", "n", *output, *hand_on, str(script.absolute())]

    def modify_command(self, scheduler_id: str, options: Mapping[str, str]) -> list[str]:
        if "-q" not in options:
            return ["qalter", *(word for option in options.values() for word in option.split(" ", 1)), scheduler_id]
        if len(options) > 1:
            raise ModifyRefused("PBS moves a job to another queue in a step of its own: change the queue alone")
        return ["qmove", value_of(options["-q"]), scheduler_id]

    def tagged(self, tag: str) -> str | None:
        return next(iter(self.ask("qselect", "-x", "-N", tag).split()), None)

    def look(self, ids: Sequence[str]) -> Mapping[str, Status | None]:
        # It fails when it does not know one of them, and tells of the others all the same.
        answer = self.run("qstat", "-x", "-f", "-F", "json", *ids)
        unknown = re.findall(r"Unknown Job Id:? (\S+)", answer.err, re.IGNORECASE)
        if answer.code and not unknown:
            raise SchedulerUnavailable(f"qstat: {answer.err.strip()}")
        found: dict[str, Status | None] = {_number(name): _status(job) for name, job in _jobs(answer.out).items()}
        found |= {_number(name): None for name in unknown}
        return {name: found[_number(name)] for name in ids if _number(name) in found}

    def cancel(self, scheduler_id: str) -> None:
        """PBS sends SIGTERM and, after its own kill_delay, SIGKILL."""
        self.run("qdel", scheduler_id)


def _nodes(select: str) -> int:
    """How many chunks there are in `2:ncpus=8+1`."""
    counts = (re.match(r"\d+(?=:|$)", chunk.strip()) for chunk in select.split("+"))
    return sum(1 if count is None else int(count[0]) for count in counts)


def _number(name: str) -> str:
    """Commands differ in how they write the server's name after it."""
    return name.partition(".")[0]


def _jobs(text: str) -> dict[str, dict[str, Any]]:
    if not text.strip():
        return {}
    try:
        jobs = json.loads(text, strict=False).get("Jobs", {})  # values may have raw control characters
    except ValueError as error:
        raise SchedulerUnavailable(f"qstat printed what is not JSON: {error}") from error
    return dict(jobs)


def _status(job: Mapping[str, Any]) -> Status:
    state, comment = job.get("job_state", ""), str(job.get("comment", ""))
    if state in _QUEUED:
        return Status(SchedulerState.QUEUED, info=comment)
    if state in _RUNNING:
        return Status(SchedulerState.RUNNING, time_left=_time_left(job))
    if state in _ENDED:
        code, words = _ended(job.get("Exit_status"))
        return Status(SchedulerState.FINISHED, code, f"{words} ({comment})" if comment else words)
    return Status(SchedulerState.UNKNOWN, info=f"PBS calls it {state}")


def _ended(exit_status: int | None) -> tuple[int | None, str]:
    if exit_status is None:
        return None, "it was deleted before it ran"
    if exit_status < 0:
        return None, _KILLED_BY_PBS.get(exit_status, f"PBS ended it ({exit_status})")
    return ended(exit_status if exit_status < _SIGNALLED else _SIGNALLED - exit_status)


def _time_left(job: Mapping[str, Any]) -> float | None:
    limit = seconds(str(job.get("Resource_List", {}).get("walltime", "")))
    used = seconds(str(job.get("resources_used", {}).get("walltime", "")))
    return None if limit is None else limit - (used or 0.0)
