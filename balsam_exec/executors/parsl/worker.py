"""What a worker does with a Parsl task. A module of its own: a worker imports only this, and Parsl."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


@contextmanager
def _without_sqlalchemy() -> Iterator[None]:
    """For the import of Parsl in a worker: where SQLAlchemy is installed it takes half of that, for the monitoring's
    database, which no worker writes. A task may import it afterwards."""
    if "BALSAM_JOB_ID" not in os.environ or "sqlalchemy" in sys.modules:
        yield
        return
    absent: Any = None
    sys.modules["sqlalchemy"] = absent
    try:
        yield
    finally:
        del sys.modules["sqlalchemy"]


with _without_sqlalchemy():
    from parsl.app.errors import RemoteExceptionWrapper
    from parsl.serialize import deserialize, serialize


class TaskRaised(Exception):
    """A task raised: (the traceback as text, Parsl's wrapper of the exception serialized by Parsl).

    It has no `__cause__`: tblib, which Parsl uses, has that pickled too, and not all can be.
    """

    @property
    def wrapper(self) -> bytes:
        data: bytes = self.args[1]
        return data

    def __str__(self) -> str:
        return str(self.args[0])


class ParslCall:
    """A function as Parsl has serialized it, called with arguments that Parsl has serialized."""

    def __init__(self, function: bytes, directory: str, monitored: bool) -> None:
        """`directory` is where to run, unless it does not exist here; `monitored` by Parsl."""
        self._function = function
        self._directory = directory
        self._monitored = monitored
        self._loaded: Callable[..., Any] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return ParslCall, (self._function, self._directory, self._monitored)

    def __call__(self, args: bytes, kwargs: bytes) -> bytes:
        """The result, serialized by Parsl. Raises TaskRaised."""
        self._prepare()
        try:
            if self._loaded is None:
                self._loaded = deserialize(self._function)
            result = self._loaded(*deserialize(args), **deserialize(kwargs))
            if not isinstance(result, RemoteExceptionWrapper):
                return serialize(result)
            failure = result
        except Exception:  # noqa: BLE001 whatever it is, it travels as Parsl has it
            failure = RemoteExceptionWrapper(*_current())
        raise TaskRaised(_text(failure.e_value), _pack(failure))

    def _prepare(self) -> None:
        with suppress(OSError):  # it is not this machine's: the job's workdir it is
            os.chdir(self._directory)
        if self._monitored:
            os.environ["PARSL_WORKER_BLOCK_ID"] = os.environ.get("BALSAM_BATCH_JOB_ID", "")


def _text(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except Exception:  # noqa: BLE001 an exception whose own __str__ raises
        return f"{type(error).__name__} (its text cannot be shown)"


def _pack(failure: RemoteExceptionWrapper) -> bytes:
    try:
        return serialize(failure)
    except Exception:  # noqa: BLE001 an exception that cannot be pickled: the reason can
        return serialize(RemoteExceptionWrapper(*_current()))


def _current() -> tuple[Any, Any, Any]:
    return sys.exc_info()
