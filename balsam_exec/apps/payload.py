"""Payloads as the rest of the package sees them: typed errors and size limits over `apps.codec`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from balsam_exec.apps import codec
from balsam_exec.model.base import MAX_ENTITY
from balsam_exec.model.errors import JobFailed, JobTimeout, PayloadError, TooLarge, WorkerDied
from balsam_exec.model.jobs import Result

#: The payload of an app whose jobs are calls (`dump_call`): it has no class of its own.
CALL_APP = codec.CALL_APP

_FAILURES = {"died": WorkerDied, "timeout": JobTimeout}


class RemoteTraceback(Exception):
    """The `__cause__` of an exception raised in a job: where it was raised there, as text."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def dump_app(cls: type, base: type = object) -> bytes:
    """The class of a Python app, to be loaded over another `base` (an ApplicationDefinition, or the worker's stand-in).

    Classes of `__main__` and of local scopes travel by value, those of importable modules by reference (seed 001).
    """
    return _checked(_guard(lambda: codec.dump_app(cls, base)), f"the app {cls.__name__}")


def load_app(data: bytes, base: type = object) -> Any:
    """The class. Its `site` is None if it was an object. Raises PayloadError."""
    return _guard(lambda: codec.load_app(data, base))


def dump_arguments(args: Iterable[Any], kwargs: Mapping[str, Any]) -> bytes:
    """The arguments of an app's `run`. Raises PayloadError, TooLarge."""
    return dump((tuple(args), dict(kwargs)), "the arguments")


def load_arguments(data: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args, kwargs = load(data)
    return args, kwargs


def dump_call(
    function: Callable[..., Any], args: Iterable[Any], kwargs: Mapping[str, Any], sys_path: Iterable[str] = ()
) -> bytes:
    """A call, as the arguments of a job of an app with the payload `CALL_APP`.

    `sys_path` are directories the worker may import from, after all it has already. Raises PayloadError, TooLarge.
    """
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return _checked(_guard(lambda: codec.dump_call(function, args, kwargs, tuple(sys_path))), f"the call of {name}")


def dump(value: Any, what: str = "the value") -> bytes:
    """Any value; `what` names it in errors. Raises PayloadError, TooLarge."""
    return _checked(_guard(lambda: codec.dumps(value)), what)


def load(data: bytes) -> Any:
    """Raises PayloadError."""
    return _guard(lambda: codec.loads(data))


def dump_exception(exc: BaseException) -> tuple[bytes | None, str]:
    """(payload, or None if it would not survive the journey, and the traceback as text)."""
    data, text = codec.dump_exception(exc)
    return (None if data is not None and len(data) > MAX_ENTITY else data), text


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


def _guard(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except codec.CodecError as exc:
        raise PayloadError(str(exc)) from exc


def too_large(size: int, what: str) -> TooLarge:
    return TooLarge(
        f"{what} has {size} bytes serialized and the limit is {MAX_ENTITY}: keep large data in files "
        "and pass their paths, or use transfers",
        size=size,
        limit=MAX_ENTITY,
    )


def _checked(data: bytes, what: str) -> bytes:
    if len(data) > MAX_ENTITY:
        raise too_large(len(data), what)
    return data
