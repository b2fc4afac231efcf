"""Stand-ins for the commands of PBS Pro, LSF and Flux, which cannot be installed here: they run scripts for real and
print what is documented. This file is the program of each; its name says which. `install` puts them on a PATH.

A job is a directory in $FAKE_BATCH: `script`, `name`, `log`, `pid` of the script, `code` once it has ended. A file
`trouble` there makes every command fail with its text.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

NAMES = ("qsub", "qstat", "qselect", "qalter", "qdel", "bsub", "bjobs", "bmod", "bkill", "flux")
#: Seconds from SIGTERM to SIGKILL.
KILL_DELAY = 0.3
_ROOT = Path(__file__).parents[2]


def install(directory: Path) -> dict[str, str]:
    """Write the commands to `directory`/bin; the environment in which they are found."""
    bin_directory = directory / "bin"
    jobs = directory / "jobs"
    bin_directory.mkdir(parents=True)
    jobs.mkdir()
    for name in NAMES:
        program = bin_directory / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E {__file__} {name} "$@"\n')
        program.chmod(0o755)
    return {"PATH": f"{bin_directory}:{os.environ['PATH']}", "FAKE_BATCH": str(jobs)}


class Job:
    def __init__(self, number: int) -> None:
        self.number = number
        self.directory = Path(os.environ["FAKE_BATCH"]) / str(number)

    @classmethod
    def all(cls) -> list[Job]:
        found = sorted(int(path.name) for path in Path(os.environ["FAKE_BATCH"]).iterdir() if path.is_dir())
        return [cls(number) for number in found]

    @classmethod
    def submit(cls, script: str, name: str, log: str, environ: dict[str, str]) -> Job:
        number = 100
        while True:
            try:
                Path(os.environ["FAKE_BATCH"], str(number)).mkdir()
                break
            except FileExistsError:
                number += 1
        job = cls(number)
        (job.directory / "script").write_text(script)
        (job.directory / "script").chmod(0o755)
        (job.directory / "name").write_text(name)
        (job.directory / "log").write_text(log)
        with open(os.devnull, "r+b") as null:
            argv = [sys.executable, "-S", "-E", __file__, "run", str(number)]
            subprocess.Popen(argv, stdin=null, stdout=null, stderr=null, env=environ, start_new_session=True)
        return job

    def run(self) -> None:
        with (self.directory / "log").open() as file:
            path = file.read()
        with open(path, "ab") as log, open(os.devnull, "rb") as null:
            child = subprocess.Popen(
                [self.directory / "script"], stdin=null, stdout=log, stderr=log, start_new_session=True
            )
        (self.directory / "pid.new").write_text(str(child.pid))
        (self.directory / "pid.new").rename(self.directory / "pid")
        code = child.wait()
        (self.directory / "code.new").write_text(str(code))
        (self.directory / "code.new").rename(self.directory / "code")

    @property
    def name(self) -> str:
        return (self.directory / "name").read_text()

    @property
    def started(self) -> bool:
        return (self.directory / "pid").exists()

    @property
    def code(self) -> int | None:
        """Of the script; negative: the signal that ended it."""
        try:
            return int((self.directory / "code").read_text())
        except FileNotFoundError:
            return None

    def cancel(self) -> None:
        while not self.started:
            time.sleep(0.01)
        pid = int((self.directory / "pid").read_text())
        if self.code is not None:
            return
        os.kill(pid, signal.SIGTERM)
        if os.fork() == 0:  # the commands do not wait for it
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(null, descriptor)
            deadline = time.monotonic() + KILL_DELAY
            while self.code is None and time.monotonic() < deadline:
                time.sleep(0.01)
            sys.path.insert(0, str(_ROOT))
            from balsam_exec.platform.processes import Process

            leader = Process.of(pid)
            if leader is not None and self.code is None:
                leader.kill_followers()
                leader.send(signal.SIGKILL)


def find(ids: list[str], number: re.Pattern[str]) -> tuple[list[Job], list[str]]:
    """The jobs of these ids, and the ids of which there is none."""
    known = {job.number: job for job in Job.all()}
    found, unknown = [], []
    for name in ids:
        match = number.fullmatch(name)
        job = known.get(int(match[1])) if match else None
        if job:
            found.append(job)
        else:
            unknown.append(name)
    return found, unknown


def option(arguments: list[str], name: str) -> str:
    """The value after this option, "" without it."""
    return arguments[arguments.index(name) + 1] if name in arguments else ""


# --- PBS Pro

_PBS_ID = re.compile(r"(\d+)\.fake")


def qsub(arguments: list[str]) -> int:
    names = ["PATH", "BALSAM_TEST_RUN", "PYTEST_CURRENT_TEST", "FAKE_BATCH", *option(arguments, "-v").split(",")]
    environ = {name: os.environ[name] for name in names if name in os.environ}
    script = Path(arguments[-1]).read_text()
    if "#PBS -q no-such" in script:
        print("qsub: Unknown queue", file=sys.stderr)
        return 170
    job = Job.submit(script, option(arguments, "-N"), option(arguments, "-o"), environ)
    print(f"{job.number}.fake")
    return 0


def qselect(arguments: list[str]) -> int:
    for job in Job.all():
        if job.name == option(arguments, "-N"):
            print(f"{job.number}.fake")
    return 0


def qstat(arguments: list[str]) -> int:
    found, unknown = find(arguments[arguments.index("json") + 1 :], _PBS_ID)
    jobs = {}
    for job in found:
        shown: dict[str, object] = {
            "Job_Name": job.name,
            "job_state": "Q",
            "Resource_List": {"walltime": "00:01:00"},
            "Variable_List": {"STRANGE": "a\tb"},
        }
        if job.started:
            shown.update(job_state="R", resources_used={"walltime": "00:00:20"}, comment="Job run at Sat on (n1)")
        if job.code is not None:
            shown.update(job_state="F", Exit_status=job.code if job.code >= 0 else 256 - job.code)
        jobs[f"{job.number}.fake"] = shown
    text = json.dumps(
        {"timestamp": 1700000000, "pbs_version": "22.05.11", "pbs_server": "fake", "Jobs": jobs}, indent=4
    )
    print(text.replace("\\t", "\t"))  # as PBS does
    for name in unknown:
        print(f"qstat: Unknown Job Id {name}", file=sys.stderr)
    return 153 if unknown else 0


def qdel(arguments: list[str]) -> int:
    found, unknown = find(arguments, _PBS_ID)
    for job in found:
        job.cancel()
    return 170 if unknown else 0


def qalter(_: list[str]) -> int:
    """Everything starts at once here."""
    print("qalter: Request invalid for state of job", file=sys.stderr)
    return 168


# --- LSF

_LSF_ID = re.compile(r"(\d+)")


def bsub(arguments: list[str]) -> int:
    script = sys.stdin.read()
    if "#BSUB -q no-such" in script:
        print("no-such: No such queue. Job not submitted.", file=sys.stderr)
        return 255
    job = Job.submit(script, option(arguments, "-J"), option(arguments, "-o"), dict(os.environ))
    print(f"Job <{job.number}> is submitted to default queue <normal>.")
    return 0


def bjobs(arguments: list[str]) -> int:
    name = option(arguments, "-J")
    ids = [] if name else arguments[arguments.index("-o") + 2 :]
    found, unknown = ([job for job in Job.all() if job.name == name], []) if name else find(ids, _LSF_ID)
    if name and not found:
        print(f"Job <{name}> is not found", file=sys.stderr)
        return 255
    records = []
    for job in found:
        state = "PEND" if not job.started else "RUN"
        record = {"JOBID": str(job.number), "STAT": state, "EXIT_CODE": "", "EXIT_REASON": "", "PEND_REASON": ""}
        record["TIME_LEFT"] = "0:01 L"
        if job.code is not None:
            code = job.code if job.code >= 0 else 128 - job.code
            record.update(STAT="EXIT" if code else "DONE", EXIT_CODE=str(code) if code else "", TIME_LEFT="-")
        records.append(record)
    records += [{"JOBID": name, "ERROR": f"Job <{name}> is not found"} for name in unknown]
    print(json.dumps({"COMMAND": "bjobs", "JOBS": len(records), "RECORDS": records}, indent=2))
    return 255 if unknown else 0


def bkill(arguments: list[str]) -> int:
    found, unknown = find(arguments, _LSF_ID)
    for job in found:
        job.cancel()
        print(f"Job <{job.number}> is being terminated")
    return 255 if unknown else 0


def bmod(arguments: list[str]) -> int:
    print(f"Job <{arguments[-1]}>: Job has already started", file=sys.stderr)
    return 255


# --- Flux

_FLUX_ID = re.compile(r"f(\d+)x")


def flux(arguments: list[str]) -> int:
    commands = {"batch": _flux_batch, "jobs": _flux_jobs, "update": _flux_update, "cancel": _flux_cancel}
    return commands[arguments[0]](arguments[1:])


def _flux_batch(arguments: list[str]) -> int:
    given = dict(word[2:].split("=", 1) for word in arguments if word.startswith("--"))
    script = Path(arguments[-1]).read_text()
    if "#flux: --queue=no-such" in script:
        print("flux-batch: ERROR: [Errno 22] Invalid queue 'no-such' specified", file=sys.stderr)
        return 1
    job = Job.submit(script, given["job-name"], given["output"], dict(os.environ))
    print(f"ƒ{job.number}x")
    return 0


def _flux_jobs(arguments: list[str]) -> int:
    given = [word for word in arguments if word.startswith("--name=")]
    if given:
        found, unknown = [job for job in Job.all() if f"--name={job.name}" == given[0]], []
    else:
        found, unknown = find(arguments[arguments.index("-o") + 2 :], _FLUX_ID)
    fields = option(arguments, "-o")
    for job in found:
        state = "INACTIVE" if job.code is not None else "RUN" if job.started else "SCHED"
        result = "" if job.code is None else "FAILED" if job.code else "COMPLETED"
        values = {
            "id.f58": f"f{job.number}x",
            "state": state,
            "result": result,
            "returncode": "" if job.code is None else str(job.code),
            "t_remaining": "41.5" if state == "RUN" else "0.0",
            "exception.note": "",
        }
        line = fields
        for field, value in values.items():
            line = line.replace(f"{{{field}}}", value)
        print(line)
    for name in unknown:
        print(f"flux-jobs: ERROR: JobID {name} unknown", file=sys.stderr)
    return 1 if unknown else 0


def _flux_update(_: list[str]) -> int:
    print("flux-update: ERROR: job is running", file=sys.stderr)
    return 1


def _flux_cancel(arguments: list[str]) -> int:
    found, unknown = find(arguments, _FLUX_ID)
    for job in found:
        job.cancel()
    for name in unknown:
        print(f"flux-cancel: ERROR: {name}: unknown job id", file=sys.stderr)
    return 1 if unknown else 0


def main(name: str, arguments: list[str]) -> int:
    if name == "run":
        Job(int(arguments[0])).run()
        return 0
    trouble = Path(os.environ["FAKE_BATCH"]) / "trouble"
    if trouble.exists():
        print(trouble.read_text(), file=sys.stderr)
        return 255
    commands = {"qsub": qsub, "qstat": qstat, "qselect": qselect, "qalter": qalter, "qdel": qdel}
    commands |= {"bsub": bsub, "bjobs": bjobs, "bmod": bmod, "bkill": bkill, "flux": flux}
    return commands[name](arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
