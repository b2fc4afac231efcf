"""What the schedulers share that are spoken to by commands: running these, and submitting a key at most once."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, ClassVar

from pydantic import ValidationError

from balsam_exec.model.batch_jobs import AllocationRequest
from balsam_exec.platform.schedulers.base import (
    ModifyRefused,
    Scheduler,
    SchedulerState,
    SchedulerUnavailable,
    Status,
    SubmitRefused,
    SubmitSpec,
)

log = logging.getLogger(__name__)

#: The name of an option: of `--name=value`, `-n value`, and PBS's `-l name=value`.
_OPTION = re.compile(r"-l \w+|--?[\w-]+")
#: What an optional parameter may be called.
_PARAMETER = re.compile(r"[A-Za-z][\w-]*")
#: What `BatchJobSpec` has for a queue or a project that nobody named: the scheduler's default.
_UNNAMED = frozenset({"", "local"})


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str


class CommandScheduler(Scheduler):
    """A scheduler with commands, asked every `poll_sec` seconds.

    In `directory`, `KEY.id` is at once the intent to submit a key (it is there), the lock while its submission goes on
    (the command holds it, whoever dies), and the record: the command itself writes the id into it. Where that was lost,
    the scheduler knows the job by its `tag`. `KEY.json` has what was asked for.

    An adapter says how to ask (`options`, `submit_command`, `modify_command`), and what answers mean (`job_id`,
    `tagged`, `look`).
    """

    #: How lines of a script begin that the scheduler reads.
    prefix: ClassVar[str]
    #: The id in what the submitting command prints.
    job_id: ClassVar[re.Pattern[str]]
    #: In the words of a command that could not reach the scheduler. Other failures are answers.
    away: ClassVar[re.Pattern[str]]
    #: Optional parameters that nobody can give: the batch job has fields for them, or it would not be one allocation
    #: that is here.
    reserved: ClassVar[frozenset[str]]

    def __init__(self, directory: Path, *, poll_sec: float, timeout: float = 30.0, forget_sec: float = 60.0) -> None:
        """`timeout`: seconds for a command. After `forget_sec` seconds in which the scheduler says that there is no job
        of an id, this is taken for proven."""
        self.poll_sec = poll_sec
        self._directory = directory.absolute()
        self._digest = hashlib.sha256(bytes(directory.resolve())).hexdigest()[:8]
        self._timeout = timeout
        self._forget_sec = forget_sec
        self._missing: dict[str, float] = {}  #: id -> since when the scheduler says that there is no such job
        self._submitting = threading.Lock()
        self._slow: list[subprocess.Popen[bytes]] = []  #: submissions that took too long to wait for

    # --- what an adapter says

    @abstractmethod
    def options(self, spec: SubmitSpec) -> list[str]:
        """What to ask for, as the scheduler's options: nodes, time, queue, project, optional parameters."""

    @abstractmethod
    def submit_command(self, script: Path, spec: SubmitSpec) -> list[str]:
        """Submits the script with the tag of its key and the environment of this process."""

    @abstractmethod
    def modify_command(self, scheduler_id: str, options: Mapping[str, str]) -> list[str]:
        """Has a job that waits ask for these of the options instead, given by their names, all or nothing. Raises
        ModifyRefused where there is no such command."""

    def submitted(self, text: str) -> str | None:
        """The id in what the submitting command printed, in the last line that has one: some sites greet there."""
        ids = self.job_id.findall(text)
        return ids[-1] if ids else None

    @abstractmethod
    def tagged(self, tag: str) -> str | None:
        """The id of the job that was submitted with this tag, if the scheduler still knows it."""

    def tag(self, key: str) -> str:
        """The name of a submission at the scheduler, where its owner may have several sites."""
        return f"{key}-{self._digest}"

    @abstractmethod
    def look(self, ids: Sequence[str]) -> Mapping[str, Status | None]:
        """What the scheduler says of each of these jobs; None: asked for this id, it says that there is no such job.
        What it does not list is left out."""

    # --- asking for what a spec says

    def directives(self, spec: SubmitSpec) -> list[str]:
        return [f"{self.prefix} {option}" for option in self._checked(spec)]

    def is_reserved(self, name: str, value: str, spec: SubmitSpec) -> bool:
        """Whether an optional parameter is one of `reserved`, or short for it as commands take long options."""
        return name in self.reserved or (len(name) > 1 and any(long.startswith(name) for long in self.reserved))

    def _checked(self, spec: SubmitSpec) -> list[str]:
        """The options, none of which says anything beside what it is for. Raises SubmitRefused."""
        for name, value in spec.optional_params.items():
            if not _PARAMETER.fullmatch(name):
                raise SubmitRefused(f"{name!r} cannot be the name of an optional parameter")
            if self.is_reserved(name, value, spec):
                raise SubmitRefused(
                    f"{name} cannot be an optional parameter: num_nodes, wall_time_min, queue and project say what a "
                    "batch job asks for, and it is one allocation"
                )
        options = self.options(spec)
        for option in options:
            if not option.isprintable():
                raise SubmitRefused(f"{option!r} cannot stand in a script: it has more than one line")
            _check_words(option)
        return options

    # --- submitting once

    def submit(self, script: Path, spec: SubmitSpec) -> str:
        if not any(line.startswith(self.prefix) for line in script.read_text().splitlines()):
            raise SubmitRefused(
                f"{script} has no line that begins with {self.prefix}, so it asks for no nodes and no time: put "
                "{{ directives }} below the first line of job-template.sh"
            )
        with self._submitting, self._record(spec.key).open("a+b", buffering=0) as record:
            if known := self._read(record):
                return known
            _lock(record)
            return self._read(record) or self._recall(spec) or self._hand_over(script, spec, record)

    def find(self, key: str) -> str | None:
        try:
            with self._record(key).open("rb") as record:
                return self._read(record) or self.tagged(self.tag(key))
        except FileNotFoundError:
            return None

    def asked(self, key: str) -> list[AllocationRequest]:
        try:
            return [AllocationRequest.model_validate_json(line) for line in self._asked(key).read_text().splitlines()]
        except (FileNotFoundError, ValidationError):  # from before it was kept, or the machine went down
            return []

    def _record(self, key: str) -> Path:
        return self._directory / f"{key}.id"

    def _asked(self, key: str) -> Path:
        return self._directory / f"{key}.json"

    def _note(self, key: str, *requests: AllocationRequest) -> None:
        """Before the scheduler is told: what is not recorded elsewhere then may or may not have been done."""
        new = self._asked(key).with_suffix(".json.new")
        new.write_text("".join(f"{request.model_dump_json()}\n" for request in requests))
        new.replace(self._asked(key))

    def _read(self, record: IO[bytes]) -> str | None:
        record.seek(0)
        text, newline, _ = record.read().decode(errors="replace").rpartition("\n")  # whole lines only
        return self.submitted(text + newline)

    def _recall(self, spec: SubmitSpec) -> str | None:
        """The id of an earlier submission whose own words are lost."""
        found = self.tagged(self.tag(spec.key))
        if found is None and spec.log.exists():
            raise SubmitRefused(f"it has run already, as {spec.log} shows, but the scheduler has forgotten it")
        return found

    def _hand_over(self, script: Path, spec: SubmitSpec, record: IO[bytes]) -> str:
        argv = self.submit_command(script, spec)
        self._note(spec.key, spec.request)
        # Files, not pipes: the command must be able to end its work when we are killed.
        with tempfile.TemporaryFile() as errors, script.open("rb") as text:
            process = self._spawn(argv, stdin=text, stdout=record, stderr=errors)
            try:
                code = process.wait(self._timeout)
            except subprocess.TimeoutExpired:
                # It may succeed yet. It holds the lock, so that nobody submits again before it has ended.
                self._slow.append(process)
                raise SchedulerUnavailable(f"{argv[0]} has not answered for {self._timeout:.0f} s") from None
            errors.seek(0)
            words = _words(errors.read().decode(errors="replace"))
        if code < 0 or (code and self.away.search(words)):
            raise SchedulerUnavailable(f"{argv[0]}: {words or f'ended by signal {-code}'}")
        if code:
            raise SubmitRefused(f"{argv[0]}: {words or f'exit code {code}'}")
        found = self._read(record)
        if found is None:
            raise SchedulerUnavailable(f"{argv[0]} printed no id, see {self._record(spec.key)}")
        return found

    def _spawn(
        self, argv: list[str], *, stdin: IO[bytes], stdout: IO[bytes], stderr: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        self._slow = [process for process in self._slow if process.poll() is None]
        try:
            # A session of its own: Ctrl-C on our terminal is not for it.
            return subprocess.Popen(
                argv, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True, cwd=self._directory.parent
            )
        except OSError as error:
            raise _cannot_run(argv, error) from error

    # --- changing what waits

    def modify(self, scheduler_id: str, before: SubmitSpec, after: SubmitSpec) -> None:
        tried = self.asked(after.key) or [before.request]  # others than `before` where somebody died over a change
        try:
            argv = self.modify_command(scheduler_id, self._changed([before.request, *tried], after))
            self._note(after.key, *(one for one in tried if one.changes(after.request)), after.request)
            answer = self.run(*argv)
            if answer.code:
                raise ModifyRefused(f"{argv[0]}: {_words(answer.err) or f'exit code {answer.code}'}")
        except ModifyRefused:
            # What was merely to be made sure of is given up: it would be refused for ever.
            self._note(after.key, *(tried if before.request.changes(after.request) else [before.request]))
            raise
        self._note(after.key, after.request)

    def _changed(self, before: Iterable[AllocationRequest], after: SubmitSpec) -> dict[str, str]:
        """The options, by their names, that are others than those of one of `before`. Raises ModifyRefused."""
        try:
            new = _named(self._checked(after))
        except SubmitRefused as error:
            raise ModifyRefused(str(error)) from error
        old = [_named(self.options(SubmitSpec.of(one, after.key, after.log))) for one in before]
        if gone := sorted(set().union(*old) - set(new)):
            raise ModifyRefused(f"{', '.join(gone)} cannot be taken back: cancel it and request another one")
        return {name: option for name, option in new.items() if any(option != one.get(name) for one in old)}

    # --- asking

    def statuses(self, ids: Iterable[str]) -> dict[str, Status]:
        wanted = sorted(set(ids))
        if not wanted:
            return {}
        said = self.look(wanted)
        for name, status in said.items():
            if status is not None:
                self._missing.pop(name, None)
        unlisted = Status(SchedulerState.UNKNOWN, info="the scheduler does not list it")
        return {name: said.get(name, unlisted) or self._disowned(name) for name in wanted}

    def ask(self, *argv: str) -> str:
        """The output of a command. Raises SchedulerUnavailable when it fails, whatever the reason."""
        answer = self.run(*argv)
        if answer.code:
            raise SchedulerUnavailable(f"{argv[0]}: {_words(answer.err) or f'exit code {answer.code}'}")
        return answer.out

    def run(self, *argv: str, environ: Mapping[str, str] | None = None) -> Answer:
        """What a command answers, a refusal included. Raises SchedulerUnavailable if it could not ask."""
        try:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=self._timeout,
                env={**os.environ, "LC_ALL": "C", **(environ or {})},
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise SchedulerUnavailable(f"{argv[0]} has not answered for {self._timeout:.0f} s") from None
        except OSError as error:
            raise _cannot_run(argv, error) from error
        answer = Answer(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))
        if answer.code < 0 or (answer.code and self.away.search(answer.err)):
            raise SchedulerUnavailable(f"{argv[0]}: {_words(answer.err) or f'ended by signal {-answer.code}'}")
        return answer

    def _disowned(self, scheduler_id: str) -> Status:
        """It forgets what has ended, sooner or later; but what it says just after a restart, or before it has written
        down a submission, is no proof."""
        since = self._missing.setdefault(scheduler_id, time.monotonic())
        if time.monotonic() - since < self._forget_sec:
            return Status(SchedulerState.UNKNOWN, info="the scheduler does not know it")
        return Status(SchedulerState.FINISHED, info="the scheduler has forgotten it")

    def close(self) -> None:
        for process in self._slow:
            process.poll()


def _check_words(option: str) -> None:
    """Raise SubmitRefused if there is more in it than an option and its value."""
    try:
        count = len(shlex.split(option))
    except ValueError as error:
        raise SubmitRefused(f"{option}: {error}") from error
    if count > (1 if option.startswith("--") else 2):
        raise SubmitRefused(f"{option} is several options: put what has spaces into quotes")


def _named(options: Iterable[str]) -> dict[str, str]:
    """Options by their names."""
    found = ((match[0], option) for option in options if (match := _OPTION.match(option)))
    return dict(found)


def value_of(option: str) -> str:
    """What comes after the name of an option."""
    return _OPTION.sub("", option, count=1).lstrip("= ")


def chosen(name: str) -> bool:
    """Whether a queue or project was named."""
    return name not in _UNNAMED


def ended(code: int | None) -> tuple[int | None, str]:
    """An exit code as a shell has it, and in words; negative: ended by this signal."""
    if code is None:
        return None, "it left no exit code"
    if code < 0:
        return 128 - code, f"ended by signal {-code}"
    return code, f"exit code {code}"


def seconds(text: str) -> float | None:
    """Of `[[days-]hours:]minutes:seconds`; None for anything else (UNLIMITED)."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text.strip())
    if match is None:
        return None
    days, hours, minutes, secs = (int(group or 0) for group in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + secs)


def _lock(record: IO[bytes]) -> None:
    try:
        fcntl.flock(record, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SchedulerUnavailable("an earlier submission of this has not ended yet") from None


def _cannot_run(argv: Sequence[str], error: OSError) -> SchedulerUnavailable:
    if shutil.which(argv[0]) is None:
        return SchedulerUnavailable(
            f"there is no {argv[0]} on the PATH of the agent: is `scheduler` in settings.yml the one of this machine?"
        )
    return SchedulerUnavailable(f"cannot run {argv[0]}: {error}")


def _words(text: str) -> str:
    """Several lines as one."""
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())
