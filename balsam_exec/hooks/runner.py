"""Runs hooks, one after the other: the only place where a site loads and calls the code of apps.

It runs in a process that a keeper has forked (keeper.py), so whatever a hook does harms nobody else. Each hook finds
the surroundings that the job's own process would: cwd, environment; stdout and stderr go to balsam.log.
"""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import socket
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from balsam_exec.api import ApplicationDefinition
from balsam_exec.api.jobs import Job, job_of, unsaved
from balsam_exec.apps.payload import load_app
from balsam_exec.hooks import wire
from balsam_exec.hooks.calls import TAIL, Ending, HookAnswer, HookCall
from balsam_exec.hooks.inputs import gather
from balsam_exec.model.base import storable
from balsam_exec.model.errors import InvalidRequest, PayloadError
from balsam_exec.model.hooks import HOOK_LOG, INPUT_FILES
from balsam_exec.model.jobs import JobPatch


class Runner:
    """`payloads` are the apps by their digests, as far as they are known when the process is forked."""

    def __init__(self, payloads: Mapping[str, bytes]) -> None:
        self._payloads = dict(payloads)
        self._apps: dict[str, type[ApplicationDefinition]] = {}

    def serve(self, channel: socket.socket) -> None:
        """Answer calls until the keeper is gone."""
        while (frame := wire.receive(channel)) is not None:
            call, payload = pickle.loads(frame)
            if payload is not None:
                self._payloads[call.app_digest] = payload
            wire.send(channel, self.answer(call).model_dump_json().encode())

    def answer(self, call: HookCall) -> HookAnswer:
        pid = os.getpid()
        try:
            with _surroundings(call):
                return self._run(call)
        except OSError as error:
            return HookAnswer(ending=Ending.BROKEN, error=f"the job's workdir cannot be used: {error}")
        finally:
            if os.getpid() != pid:  # a child that the hook forked and that came back from it: it has no business here
                os._exit(0)

    def _run(self, call: HookCall) -> HookAnswer:
        if call.hook == INPUT_FILES:
            return _bring_files(call)
        try:
            app = self._app(call.app_digest)
        except PayloadError as error:
            return HookAnswer(ending=Ending.BROKEN, error=f"the app's code cannot be loaded at the site: {error}")
        try:
            return _call(app, call)
        except BaseException as error:  # noqa: BLE001 whatever a hook raises, its job fails of it
            _drop_own_frames(error)
            text = "".join(traceback.format_exception(error))
            sys.stderr.write(text)
            brief = "".join(traceback.format_exception_only(error)).strip()
            return HookAnswer(ending=Ending.RAISED, error=brief[:TAIL], traceback=text[-TAIL:])

    def _app(self, digest: str) -> type[ApplicationDefinition]:
        """Raises PayloadError."""
        found = self._apps.get(digest)
        if found is None:
            try:
                found = self._apps[digest] = load_app(self._payloads[digest], ApplicationDefinition)
            except PayloadError:
                raise
            except BaseException as error:  # a module that it imports may raise anything, an app that is none likewise
                raise PayloadError(f"{type(error).__name__}: {error}") from error
        return found


def _bring_files(call: HookCall) -> HookAnswer:
    try:
        gather(call.job, call.parents, call.workdir)
    except (InvalidRequest, OSError) as error:
        return HookAnswer(ending=Ending.BROKEN, error=str(error))
    return HookAnswer(ending=Ending.RETURNED)


def _call(app: type[ApplicationDefinition], call: HookCall) -> HookAnswer:
    job = job_of(call.job, app)
    found = getattr(app(job), call.hook)
    value = found() if callable(found) else found
    if call.hook == "shell_preamble":
        return HookAnswer(ending=Ending.RETURNED, text=preamble_text(value))
    return _after(job, call)


def _after(job: Job, call: HookCall) -> HookAnswer:
    """What the hook did to its job."""
    if job._record.state != call.job.state:  # it has saved the job itself
        job.save()
        return HookAnswer(ending=Ending.RETURNED, moved=True)
    return HookAnswer(ending=Ending.RETURNED, patch=_sendable(unsaved(job)))


def _sendable(patch: JobPatch) -> JobPatch:
    for name in ("data", "state_data", "parameters"):
        try:
            json.dumps(getattr(patch, name), allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError) as error:
            raise TypeError(f"self.job.{name} is sent as JSON, and this is not: {error}") from None
    return patch


def preamble_text(value: Any) -> str:
    """Lines for a shell, of what `shell_preamble` gives: text, or a list of lines. Raises TypeError."""
    if isinstance(value, (list, tuple)) and all(isinstance(line, str) for line in value):
        value = "\n".join(value)
    elif isinstance(value, str):
        value = textwrap.dedent(value)
    elif value is not None:
        raise TypeError(f"shell_preamble gives text or a list of lines, not {value!r}")
    if value and value != storable(value):
        raise ValueError("shell_preamble gives text that no shell can be given: it has a NUL, or what is not UTF-8")
    return value or ""


@contextmanager
def _surroundings(call: HookCall) -> Iterator[None]:
    """Raises OSError."""
    streams, environment = (sys.stdout, sys.stderr), dict(os.environ)
    os.makedirs(call.workdir, exist_ok=True)
    os.chdir(call.workdir)
    log = os.open(HOOK_LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    before = os.dup(1), os.dup(2)
    for number in (1, 2):
        os.dup2(log, number)
    os.close(log)
    sys.stdout, sys.stderr = _stream(1), _stream(2)
    os.environ.update({**call.environment, "BALSAM_JOB_ID": str(call.job.id)})
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, ValueError, OSError):  # None, closed, or the disk is full: the hook's affair
                stream.flush()
        _flush_libc(None)
        for number, saved in zip((1, 2), before, strict=True):
            os.dup2(saved, number)
            os.close(saved)
        sys.stdout, sys.stderr = streams
        os.environ.clear()
        os.environ.update(environment)
        os.chdir("/")


def _stream(number: int) -> TextIO:
    """Lines to a descriptor, which outlives it."""
    return open(number, "w", buffering=1, errors="backslashreplace", closefd=False)


def _drop_own_frames(error: BaseException) -> None:
    """So that a traceback starts with the app."""
    while error.__traceback__ is not None and error.__traceback__.tb_frame.f_code.co_filename == __file__:
        error.__traceback__ = error.__traceback__.tb_next


def _libc_flush() -> Callable[[Any], Any]:
    """fflush of the C library: what extensions print goes to the job that printed it."""
    try:
        flush: Callable[[Any], Any] = ctypes.CDLL(None).fflush
    except (OSError, AttributeError):
        return lambda _: None
    return flush


_flush_libc = _libc_flush()
