"""LSF, through bsub, bjobs, bmod and bkill."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from balsam_exec.platform.schedulers.base import SchedulerState, SchedulerUnavailable, Status, SubmitSpec
from balsam_exec.platform.schedulers.commands import CommandScheduler, chosen, ended

_QUEUED = frozenset({"PEND", "PSUSP", "PROV", "WAIT"})
_RUNNING = frozenset({"RUN", "USUSP", "SSUSP"})
_ENDED = frozenset({"DONE", "EXIT"})
_FIELDS = "jobid stat exit_code exit_reason pend_reason time_left"


class LsfScheduler(CommandScheduler):
    """The tag of a submission is its name. Optional parameters are options: `-name value`."""

    prefix = "#BSUB"
    job_id = re.compile(r"^Job <(\d+)> is submitted", re.MULTILINE)
    away = re.compile(r"LSF is down|cannot (connect|open)|Failed in an LSF library call|timed? ?out", re.IGNORECASE)
    reserved = frozenset({"nnodes", "W", "q", "P", "J", "K", "I", "Ip", "Is"})

    def options(self, spec: SubmitSpec) -> list[str]:
        return [
            f"-nnodes {spec.num_nodes}",
            f"-W {spec.wall_time_min}",
            *(f"{option} {name}" for option, name in (("-q", spec.queue), ("-P", spec.project)) if chosen(name)),
            *(f"-{name} {value}".rstrip() for name, value in spec.optional_params.items()),
        ]

    def submit_command(self, script: Path, spec: SubmitSpec) -> list[str]:
        # It looks for options in its standard input, which is the script, and not in a file that it is told of.
        return ["bsub", "-J", self.tag(spec.key), "-o", str(spec.log.absolute()), "-rn"]

    def modify_command(self, scheduler_id: str, options: Mapping[str, str]) -> list[str]:
        return ["bmod", *(word for option in options.values() for word in option.split(" ", 1)), scheduler_id]

    def tagged(self, tag: str) -> str | None:
        return next((record["JOBID"] for record in self._records("-J", tag) if "ERROR" not in record), None)

    def look(self, ids: Sequence[str]) -> Mapping[str, Status | None]:
        return {record["JOBID"]: _status(record) for record in self._records(*ids)}

    def cancel(self, scheduler_id: str) -> None:
        """LSF sends SIGINT, SIGTERM and SIGKILL, with its JOB_TERMINATE_INTERVAL between them."""
        self.run("bkill", scheduler_id)

    def _records(self, *which: str) -> list[dict[str, str]]:
        # It fails when it does not find one of them.
        answer = self.run("bjobs", "-a", "-json", "-o", _FIELDS, *which)
        if not answer.out.strip() and "not found" in answer.err:
            return []
        try:
            return list(json.loads(answer.out, strict=False)["RECORDS"])
        except (ValueError, KeyError) as error:
            raise SchedulerUnavailable(f"bjobs: {answer.err.strip() or answer.out[:200]}") from error


def _status(record: Mapping[str, str]) -> Status | None:
    if "not found" in record.get("ERROR", ""):
        return None
    state = record.get("STAT", "")
    if state in _QUEUED:
        return Status(SchedulerState.QUEUED, info=record.get("PEND_REASON", ""))
    if state in _RUNNING:
        return Status(SchedulerState.RUNNING, time_left=_time_left(record.get("TIME_LEFT", "")))
    if state in _ENDED:
        given = record.get("EXIT_CODE", "")
        code, words = ended(0 if state == "DONE" else int(given) if given.isdigit() else None)
        why = record.get("EXIT_REASON", "")
        return Status(SchedulerState.FINISHED, code, f"{words} ({why})" if why else words)
    return Status(SchedulerState.UNKNOWN, info=f"LSF calls it {state}")


def _time_left(text: str) -> float | None:
    """Of `hours:minutes` and a letter that says where the limit comes from."""
    match = re.match(r"(\d+):(\d+)", text)
    return None if match is None else 3600.0 * int(match[1]) + 60.0 * int(match[2])
