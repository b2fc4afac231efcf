"""Flux, through `flux batch`, `flux jobs`, `flux update` and `flux cancel`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from balsam_exec.platform.schedulers.base import (
    ModifyRefused,
    SchedulerState,
    SchedulerUnavailable,
    Status,
    SubmitSpec,
)
from balsam_exec.platform.schedulers.commands import CommandScheduler, chosen, ended, value_of

_QUEUED = frozenset({"DEPEND", "PRIORITY", "SCHED"})
_RUNNING = frozenset({"RUN", "CLEANUP"})
_RESULTS = {"TIMEOUT": "it reached its wall time", "CANCELED": "it was cancelled"}
#: What `flux update` calls the options of `flux batch` that it can change.
_UPDATES = {"--time-limit": "duration", "--queue": "queue"}
#: The note of an exception is last, as it may hold anything.
_FORMAT = "{id.f58}|{state}|{result}|{returncode}|{t_remaining}|{exception.note}"


class FluxScheduler(CommandScheduler):
    """The tag of a submission is its name. Ids are written with an f, as Flux does where the terminal has no ƒ."""

    prefix = "#flux:"
    job_id = re.compile(r"^[ƒf](\w+)$", re.MULTILINE)
    away = re.compile(r"flux_open|Unable to connect|Connection refused|Host is down|timed? ?out", re.IGNORECASE)
    reserved = frozenset({"nodes", "N", "time-limit", "t", "queue", "q", "bank", "B"})

    def options(self, spec: SubmitSpec) -> list[str]:
        named = {"queue": spec.queue, "bank": spec.project}
        return [
            f"--nodes={spec.num_nodes}",
            "--exclusive",
            f"--time-limit={spec.wall_time_min}m",
            *(f"--{name}={value}" for name, value in named.items() if chosen(value)),
            *(f"--{name}={value}" if value else f"--{name}" for name, value in spec.optional_params.items()),
        ]

    def submit_command(self, script: Path, spec: SubmitSpec) -> list[str]:
        tag = f"--job-name={self.tag(spec.key)}"
        return ["flux", "batch", tag, f"--output={spec.log.absolute()}", str(script.absolute())]

    def modify_command(self, scheduler_id: str, options: Mapping[str, str]) -> list[str]:
        if strange := sorted(set(options) - set(_UPDATES)):
            raise ModifyRefused(f"Flux does not change {', '.join(strange)} of what waits")
        changes = (f"{_UPDATES[name]}={value_of(option)}" for name, option in options.items())
        return ["flux", "update", scheduler_id, *changes]

    def submitted(self, text: str) -> str | None:
        found = super().submitted(text)
        return found and f"f{found}"

    def tagged(self, tag: str) -> str | None:
        return next(iter(self.ask("flux", "jobs", "-a", "-n", f"--name={tag}", "-o", "{id.f58}").split()), None)

    def look(self, ids: Sequence[str]) -> Mapping[str, Status | None]:
        # It fails when it does not know one of them, and tells of the others all the same.
        answer = self.run("flux", "jobs", "-a", "-n", "-o", _FORMAT, *ids)
        unknown = set(re.findall(r"JobID (\S+) unknown", answer.err))
        if answer.code and not unknown:
            raise SchedulerUnavailable(f"flux jobs: {answer.err.strip()}")
        rows = [line.split("|", 5) for line in answer.out.splitlines() if line.count("|") >= 5]
        found: dict[str, Status | None] = {name: _status(*values) for name, *values in rows}
        return found | dict.fromkeys(unknown)

    def cancel(self, scheduler_id: str) -> None:
        """Flux sends SIGTERM and, after its own kill-timeout, SIGKILL."""
        self.run("flux", "cancel", scheduler_id)


def _status(state: str, result: str, returncode: str, time_left: str, note: str) -> Status:
    if state in _QUEUED:
        return Status(SchedulerState.QUEUED)
    if state in _RUNNING:
        return Status(SchedulerState.RUNNING, time_left=_number(time_left) or None)
    if state != "INACTIVE":
        return Status(SchedulerState.UNKNOWN, info=f"Flux calls it {state}")
    code, words = ended(None if (given := _number(returncode)) is None else int(given))
    words = _RESULTS.get(result, words)
    return Status(SchedulerState.FINISHED, code, f"{words} ({note})" if note else words)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
