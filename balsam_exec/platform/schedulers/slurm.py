"""Slurm, through sbatch, squeue, scancel, scontrol, sinfo and, where there is accounting, sacct."""

from __future__ import annotations

import logging
import os
import re
import shlex
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from balsam_exec.platform.schedulers.base import (
    ModifyRefused,
    SchedulerState,
    SchedulerUnavailable,
    Status,
    SubmitSpec,
    Window,
)
from balsam_exec.platform.schedulers.commands import CommandScheduler, chosen, ended, seconds, value_of

log = logging.getLogger(__name__)

_QUEUED = frozenset(
    {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
)
#: COMPLETING: it has ended, but something of it may still be there.
_RUNNING = frozenset({"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"})
#: They ended with a code of their own.
_EXITED = frozenset({"COMPLETED", "FAILED"})
_ENDED = {
    "BOOT_FAIL": "its nodes did not boot",
    "CANCELLED": "it was cancelled",
    "DEADLINE": "it could not end before its deadline",
    "NODE_FAIL": "one of its nodes failed",
    "OUT_OF_MEMORY": "it ran out of memory",
    "PREEMPTED": "it had to make room for another job",
    "TIMEOUT": "it reached its wall time",
}
#: Reasons that say nothing beyond the state.
_NO_REASON = frozenset({"None", "NonZeroExitCode", "TimeLimit", "NodeDown"})

#: What `scontrol update` calls the options of sbatch that it can change.
_UPDATES = {
    "--nodes": "NumNodes",
    "--time": "TimeLimit",
    "--partition": "Partition",
    "--account": "Account",
    "--qos": "QOS",
    "--reservation": "ReservationName",
    "--constraint": "Features",
    "--begin": "StartTime",
    "--dependency": "Dependency",
    "--nice": "Nice",
}

#: Suffixes instead of widths: nothing is cut off. The comment is last, as it may hold anything.
_FIELDS = "JobID:|,State:|,exit_code:|,Reason:|,TimeLeft:|,Comment:|"


class SlurmScheduler(CommandScheduler):
    """The tag of a submission is its comment. Whole nodes are asked for, and no requeueing: a key runs once."""

    prefix = "#SBATCH"
    job_id = re.compile(r"^(\d+)(?:;.*)?$", re.MULTILINE)
    away = re.compile(
        r"contact slurm controller|timed out|Connection refused|Zero Bytes|standby mode|temporarily un"
        r"|Communication connection|Transport endpoint|Protocol authentication|not responding",
        re.IGNORECASE,
    )
    reserved = frozenset(
        {"nodes", "N", "time", "t", "partition", "p", "account", "A"}
        | {"array", "a", "clusters", "M", "wait", "W", "test-only"}
    )

    def __init__(
        self, directory: Path, *, poll_sec: float, grace: float, timeout: float = 30.0, forget_sec: float = 60.0
    ) -> None:
        super().__init__(directory, poll_sec=poll_sec, timeout=timeout, forget_sec=forget_sec)
        self._grace = grace
        self._lock = threading.Lock()
        self._killers: dict[str, threading.Timer] = {}  #: for what has been asked to end

    def options(self, spec: SubmitSpec) -> list[str]:
        named = {"partition": spec.queue, "account": spec.project}
        return [
            f"--nodes={spec.num_nodes}",
            "--exclusive",
            f"--time={spec.wall_time_min}",
            *(_option(name, value) for name, value in named.items() if chosen(value)),
            *(_option(name, value) for name, value in spec.optional_params.items()),
        ]

    def submit_command(self, script: Path, spec: SubmitSpec) -> list[str]:
        log_file = str(spec.log.absolute()).replace("%", "%%")
        return [
            "sbatch",
            "--parsable",
            f"--job-name=balsam-{spec.key}",
            f"--comment={self.tag(spec.key)}",
            f"--output={log_file}",
            "--open-mode=append",
            "--no-requeue",
            "--export=ALL",
            str(script.absolute()),
        ]

    def modify(self, scheduler_id: str, before: SubmitSpec, after: SubmitSpec) -> None:
        held = self._shape(scheduler_id)
        try:
            super().modify(scheduler_id, before, after)
        except ModifyRefused:
            # Part of it may have been done: "not available now" even comes when all of it has, and it can never start.
            if self._shape(scheduler_id) != held:
                self.ask("scontrol", "update", f"JobId={scheduler_id}", *held)
            raise

    def modify_command(self, scheduler_id: str, options: Mapping[str, str]) -> list[str]:
        if strange := sorted(set(options) - set(_UPDATES)):
            raise ModifyRefused(f"Slurm does not change {', '.join(strange)} of what waits")
        values = {name: "".join(shlex.split(value_of(option))) for name, option in options.items()}
        if nodes := values.get("--nodes"):
            values["--nodes"] = f"{nodes}-{nodes}"  # not just at least so many
        return ["scontrol", "update", f"JobId={scheduler_id}", *(f"{_UPDATES[n]}={v}" for n, v in values.items())]

    def tagged(self, tag: str) -> str | None:
        return next((fields[0] for fields in self._queue() if fields[-1] == tag), None)

    def look(self, ids: Sequence[str]) -> Mapping[str, Status | None]:
        listed = {fields[0]: _status(*fields[1:-1]) for fields in self._queue()}
        return {name: listed[name] if name in listed else self._absent(name) for name in ids}

    def cancel(self, scheduler_id: str) -> None:
        """SIGTERM goes to the script alone, so that a launcher is not surprised by the death of its jobs; what is left
        after the grace period is Slurm's to end: SIGTERM to all, and after its KillWait SIGKILL."""
        with self._lock:
            if scheduler_id in self._killers:
                return
            self.run("scancel", "--state=PENDING", scheduler_id)
            self.run("scancel", "--state=RUNNING", "--batch", "--signal=TERM", scheduler_id)
            self._kill_later(scheduler_id)

    def windows(self) -> list[Window]:
        idle = self.ask("sinfo", "-h", "-t", "idle", "-o", "%R|%D|%l")
        pending = self.run("squeue", "-h", "-t", "PENDING", "-o", "%P|%S", environ={"SLURM_TIME_FORMAT": "%s"})
        return windows(idle, pending.out, time.time())

    def close(self) -> None:
        with self._lock:
            for timer in self._killers.values():
                timer.cancel()
            self._killers.clear()
        super().close()

    def _queue(self) -> list[list[str]]:
        """Of each of our jobs that the controller remembers: id, state, exit code, reason, time left, comment."""
        lines = self.ask("squeue", "--me", "-h", "-t", "all", "-O", _FIELDS).splitlines()
        return [line.removesuffix("|").split("|", 5) for line in lines if line.count("|") > 5]

    def _shape(self, scheduler_id: str) -> list[str]:
        """What a job that waits asks for, as `scontrol update` takes it."""
        shown = self.ask("scontrol", "-o", "show", "job", scheduler_id)
        found = dict(re.findall(r"\b(NumNodes|NumCPUs|TimeLimit|Partition)=([^\s-]+)", shown))
        if nodes := found.get("NumNodes"):
            found["NumNodes"] = f"{nodes}-{nodes}"
        return [f"{name}={value}" for name, value in found.items()]

    def _absent(self, scheduler_id: str) -> Status | None:
        """The status of one that the listing leaves out: asked for by its id."""
        shown = self.run("scontrol", "-o", "show", "job", scheduler_id)
        if shown.code == 0:
            values = dict(re.findall(r"\b(JobState|ExitCode|Reason)=(\S+)", shown.out))
            return _status(values.get("JobState", ""), values.get("ExitCode", ""), values.get("Reason", "None"), "")
        if "Invalid job id" not in shown.err:
            raise SchedulerUnavailable(f"scontrol: {shown.err.strip()}")
        recorded = self._recorded(scheduler_id)
        return recorded if recorded is not None and recorded.state is SchedulerState.FINISHED else None

    def _recorded(self, scheduler_id: str) -> Status | None:
        """What the accounting has of it, where there is one."""
        try:
            answer = self.run("sacct", "-X", "-n", "-P", "-j", scheduler_id, "-o", "State,ExitCode")
        except SchedulerUnavailable as error:
            log.debug("no accounting: %s", error)
            return None
        fields = answer.out.strip().split("|")
        return _status(fields[0].partition(" ")[0], fields[1], "None", "") if len(fields) == 2 else None

    def _kill_later(self, scheduler_id: str) -> None:
        timer = threading.Timer(self._grace, self._kill, [scheduler_id])
        timer.daemon = True
        self._killers[scheduler_id] = timer
        timer.start()

    def _kill(self, scheduler_id: str) -> None:
        with self._lock:
            if scheduler_id not in self._killers:  # closed meanwhile
                return
            del self._killers[scheduler_id]
            try:
                self.run("scancel", scheduler_id)
            except SchedulerUnavailable as error:
                log.warning("%s; cancelling %s again later", error, scheduler_id)
                self._kill_later(scheduler_id)


def _option(name: str, value: str) -> str:
    if len(name) == 1:
        return f"-{name} {shlex.quote(value)}"
    return f"--{name}={shlex.quote(value)}" if value else f"--{name}"


def _status(state: str, exit_code: str, reason: str, time_left: str) -> Status:
    why = "" if reason in _NO_REASON else reason
    if state in _QUEUED:
        return Status(SchedulerState.QUEUED, info=why)
    if state in _RUNNING:
        return Status(SchedulerState.RUNNING, time_left=seconds(time_left))
    if state in _EXITED:
        code, words = ended(_exit_code(exit_code))
        return Status(SchedulerState.FINISHED, code, f"{state}: {words}{why and f' ({why})'}")
    if state in _ENDED:
        return Status(SchedulerState.FINISHED, info=f"{state}: {_ENDED[state]}")
    return Status(SchedulerState.UNKNOWN, info=f"Slurm calls it {state}")


def _exit_code(text: str) -> int | None:
    """From `code:signal` (scontrol, sacct) or a wait status (squeue); negative: the signal."""
    code, separator, signal = text.partition(":")
    if not code.isdigit():
        return None
    if not separator:
        return os.waitstatus_to_exitcode(int(code))
    return -int(signal) if signal.isdigit() and int(signal) else int(code)


def windows(idle: str, pending: str, now: float) -> list[Window]:
    """Backfill windows, from the idle nodes of each partition (partition|nodes|time limit), and when its pending jobs
    (partition|epoch seconds) are expected to want them."""
    nodes: dict[str, int] = {}
    limits: dict[str, float | None] = {}
    for line in idle.splitlines():
        partition, count, limit = line.split("|")
        nodes[partition] = nodes.get(partition, 0) + int(count)
        limits[partition] = seconds(limit)
    for line in pending.splitlines():
        partitions, _, start = line.partition("|")
        if not start.isdigit():  # nobody knows
            continue
        left = max(0.0, float(start) - now)
        for partition in partitions.split(","):
            if partition in limits:
                limit_sec = limits[partition]
                limits[partition] = left if limit_sec is None else min(left, limit_sec)
    found = [
        Window(partition, count, None if (limit_sec := limits[partition]) is None else int(limit_sec // 60))
        for partition, count in nodes.items()
        if count
    ]
    return [window for window in found if window.wall_time_min != 0]
