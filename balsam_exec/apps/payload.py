"""Payloads as the rest of the package sees them: typed errors over `apps.codec`. How large one may be, the service that
it is sent to says."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from balsam_exec.apps import codec
from balsam_exec.model.apps import AppSpec, Isolation
from balsam_exec.model.errors import JobFailed, JobTimeout, PayloadError, WorkerDied
from balsam_exec.model.jobs import Result

T = TypeVar("T")

_FAILURES = {"died": WorkerDied, "timeout": JobTimeout}


class RemoteTraceback(Exception):
    """The `__cause__` of an exception raised in a job: where it was raised there, as text."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def dump_app(cls: type, base: type = object) -> bytes:
    """The class of a Python app, to be loaded over another `base` (an ApplicationDefinition, or the worker's stand-in).

    Classes of `__main__` and of local scopes travel by value, those of importable modules by reference (seed 001).
    """
    return _guarded(lambda: codec.dump_app(cls, base))


def load_app(data: bytes, base: type = object) -> Any:
    """The class. Its `site` is None if it was an object. Raises PayloadError."""
    return _guarded(lambda: codec.load_app(data, base))


def dump_arguments(args: Iterable[Any], kwargs: Mapping[str, Any]) -> bytes:
    """The arguments of an app's `run`. Raises PayloadError."""
    return dump((tuple(args), dict(kwargs)))


def load_arguments(data: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args, kwargs = load(data)
    return args, kwargs


def call_app(
    site_id: int,
    sys_path: Iterable[str] = (),
    isolation: Isolation = Isolation.WORKER,
    function: bytes | None = None,
) -> AppSpec:
    """The app whose jobs are calls: it has no class, and any number of clients share it.

    Its jobs' arguments are a function with its arguments (`join_call`), or with a `function` (`dump_function`) only
    the arguments (`dump_call_arguments`). `sys_path` are directories from which workers may import, where they exist,
    after all they can import already.
    """
    payload = codec.dump_call_app(list(sys_path), function)
    name = f"call_{hashlib.sha256(payload + isolation.encode()).hexdigest()[:16]}"
    return AppSpec(
        site_id=site_id,
        name=name,
        description="A function that was submitted to an executor" if function else "Functions submitted to executors",
        hooks=["run"],
        payload=payload,
        isolation=isolation,
    )


def dump_call(function: Callable[..., Any], args: Iterable[Any], kwargs: Mapping[str, Any]) -> bytes:
    """A call, as the arguments of a job of a `call_app` without a function. Raises PayloadError."""
    return codec.join_call(dump_function(function), dump_call_arguments(args, kwargs))


def dump_function(function: Callable[..., Any]) -> bytes:
    """Raises PayloadError."""
    return _guarded(lambda: codec.dump_function(function))


def dump_call_arguments(args: Iterable[Any], kwargs: Mapping[str, Any]) -> bytes:
    """Raises PayloadError."""
    return _guarded(lambda: codec.dump_call_arguments(args, kwargs))


def dump(value: Any) -> bytes:
    """Raises PayloadError."""
    return _guarded(lambda: codec.dumps(value))


def load(data: bytes) -> Any:
    """Raises PayloadError."""
    return _guarded(lambda: codec.loads(data))


def dump_exception(exc: BaseException) -> tuple[bytes | None, str]:
    """(payload, or None if it would not survive the journey, and the traceback as text)."""
    return codec.dump_exception(exc)


def load_result(result: Result) -> Any:
    """The value of a job that ended, or its failure raised.

    An exception of the app comes back as itself, with the remote traceback as its cause; where that is not
    possible, and for failures without one, it is WorkerDied, JobTimeout or JobFailed with the text.
    """
    if result.ok:
        return None if result.value is None else load(result.value)
    if result.exception is not None:
        try:
            exc = load(result.exception)
        except PayloadError as problem:
            raise JobFailed(f"{result.error}\n(the exception itself could not be loaded here: {problem})") from problem
        if isinstance(exc, BaseException):
            raise exc from RemoteTraceback(result.error)
    failure = _FAILURES.get(result.reason, JobFailed)
    raise failure(result.error or "the job failed without a message", return_code=result.return_code)


def _guarded(work: Callable[[], T]) -> T:
    try:
        return work()
    except codec.CodecError as exc:
        raise PayloadError(str(exc)) from exc
