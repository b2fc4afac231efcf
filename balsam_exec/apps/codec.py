"""How Python things become bytes and return: app classes, arguments, calls, results, exceptions.

Standard library only, Python 3.8 and up, and nothing of this package: the worker loads this very file by its path
in interpreters where the package is not installed. dill and cloudpickle are imported when they are first needed.

Every payload starts with one line, its stamp: `bx1 CODEC PYTHON VERSION`, where CODEC is

- `p`: the standard pickle of plain data (builtin types, numpy arrays, ...); readable by any Python;
- `d`: dill with `recurse=True` (seed 001 "Technical Details");
- `c`: cloudpickle, which keeps the identity of classes on their way back; for calls;
- `call`: a function and its arguments, each a payload of its own; or the app of calls, which may have the function.
"""

from __future__ import annotations

import io
import pickle
import sys
import traceback
from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType
from typing import Any

FORMAT = "bx1"
DILL = "d"
CLOUDPICKLE = "c"
PROTOCOL = 4
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"

_PLAIN_HEAD = (FORMAT + " p\n").encode()
_CALL_HEAD = (FORMAT + " call\n").encode()

#: Objects of these packages are the same wherever they can be imported at all.
_PLAIN_HOMES = frozenset(
    ("builtins", "collections", "copyreg", "datetime", "decimal", "fractions", "numpy", "pathlib", "uuid")
)
_NAMED = (type, FunctionType, BuiltinFunctionType)
#: What marks code objects in a payload of dill and of cloudpickle; code runs only on the Python that compiled it.
_CODE_MARKS = (b"_create_code", b"CodeType")


class CodecError(Exception):
    """Something could not be made into bytes or back; the message says what and why."""


class _NotPlain(Exception):
    pass


class _PlainPickler(pickle.Pickler):
    """The C pickler, for plain data only: whatever might have to travel by value makes it give up."""

    def reducer_override(self, obj: Any) -> Any:
        home = (obj if isinstance(obj, _NAMED) else type(obj)).__module__
        if home is None or home.partition(".")[0] not in _PLAIN_HOMES:
            raise _NotPlain
        return NotImplemented


def dumps(value: Any, codec: str = DILL) -> bytes:
    """`value` as bytes, by the standard pickle if it is plain data and else by `codec`. Raises CodecError."""
    buffer = io.BytesIO()
    buffer.write(_PLAIN_HEAD)
    try:
        _PlainPickler(buffer, PROTOCOL).dump(value)
        return buffer.getvalue()
    except Exception:  # noqa: BLE001 whatever plain pickle cannot do, the codec gets its chance
        return _dumps_by(codec, value)


def _dumps_by(codec: str, value: Any, replaced: dict[int, str] | None = None) -> bytes:
    module = _import(codec)
    buffer = io.BytesIO()
    buffer.write(f"{FORMAT} {codec} {PYTHON} {module.__version__}\n".encode())
    try:
        if codec == CLOUDPICKLE:
            module.dump(value, buffer, protocol=PROTOCOL)
        else:
            pickler = module.Pickler(buffer, protocol=PROTOCOL, recurse=True)
            if replaced:
                pickler.persistent_id = lambda obj: replaced.get(id(obj))
            pickler.dump(value)
    except Exception as exc:
        raise CodecError(f"cannot serialize {_brief(value)}: {type(exc).__name__}: {exc}") from exc
    return buffer.getvalue()


def loads(data: bytes, names: dict[str, Any] | None = None) -> Any:
    """What `dumps` made `data` of. `names` resolves what `dump_app` replaced by a name. Raises CodecError."""
    stamp, body = _split(data)
    codec = stamp[1]
    try:
        if codec == "p":
            return pickle.loads(body)
        if codec not in (DILL, CLOUDPICKLE):
            raise CodecError(f"unknown payload kind {codec!r}: it was made by another version of balsam_exec")
        _check_python(stamp, body)
        module = _import(codec)
        loader: Any = (module if codec == DILL else pickle).Unpickler(io.BytesIO(body))
        if names is not None:
            loader.persistent_load = names.__getitem__
        return loader.load()
    except CodecError:
        raise
    except Exception as exc:
        raise CodecError(f"cannot load a payload{_made_by(stamp)}: {type(exc).__name__}: {exc}{_hint(stamp)}") from exc


def dump_app(cls: type, base: type) -> bytes:
    """The class of a Python app. `base` (ApplicationDefinition), its metaclass and the site are left out by name, so
    that the app loads where this package is not installed."""
    replaced = {id(base): "base"}
    if type(base) is not type:
        replaced[id(type(base))] = "meta"
    site = getattr(cls, "site", None)
    if not isinstance(site, (str, int, type(None))):
        replaced[id(site)] = "site"
    return _dumps_by(DILL, cls, replaced)


def load_app(data: bytes, base: type = object) -> Any:
    """The class that `dump_app` was given, over this `base`."""
    return loads(data, {"base": base, "meta": type(base), "site": None})


def dump_function(function: Callable[..., Any]) -> bytes:
    """The function of calls."""
    return dumps(function, CLOUDPICKLE)


def dump_call_arguments(args: Any, kwargs: Any) -> bytes:
    """The arguments of a call whose function is in the job's app."""
    return dumps((tuple(args), dict(kwargs)), CLOUDPICKLE)


def join_call(function: bytes, arguments: bytes) -> bytes:
    """A call whose function is not in the app; the two apart, so that a worker loads a function once for many calls."""
    return _CALL_HEAD + pickle.dumps((function, arguments), PROTOCOL)


def split_call(data: bytes) -> tuple[bytes, bytes]:
    """(function, arguments) of a call, still as payloads."""
    stamp, body = _split(data)
    if stamp[1] != "call":
        raise CodecError(f"this is no call but a payload of kind {stamp[1]!r}")
    function, arguments = pickle.loads(body)
    return function, arguments


def dump_call_app(sys_path: list[str], function: bytes | None = None) -> bytes:
    """The app of calls: no class, only the directories to import their modules from; of any function, or of one."""
    return _CALL_HEAD + pickle.dumps((list(sys_path), function), PROTOCOL)


def load_call_app(data: bytes) -> tuple[list[str], bytes | None] | None:
    """The directories and the function of an app of calls; None if `data` is an ordinary app."""
    stamp, body = _split(data)
    if stamp[1] != "call":
        return None
    sys_path, function = pickle.loads(body)
    return sys_path, function


def dump_exception(exc: BaseException, codec: str = DILL) -> tuple[bytes | None, str]:
    """(payload or None if it does not survive the journey, traceback as text)."""
    try:
        text = "".join(traceback.format_exception(type(exc), exc, exc.__traceback__))
    except Exception as broken:  # noqa: BLE001 an exception whose own __str__ raises
        text = f"{type(exc).__name__} (its text cannot be shown: {type(broken).__name__})\n"
    try:
        data = dumps(exc, codec)
        if not isinstance(loads(data), BaseException):
            return None, text
    except CodecError:
        return None, text
    return data, text


def codec_name(codec: str) -> str:
    return {DILL: "dill", CLOUDPICKLE: "cloudpickle"}.get(codec, codec)


def _split(data: bytes) -> tuple[list[str], memoryview]:
    end = data.find(b"\n", 0, 100)
    stamp = data[: max(end, 0)].decode("ascii", "replace").split(" ")
    if len(stamp) < 2 or stamp[0] != FORMAT:
        raise CodecError(f"not a payload of format {FORMAT}: it was made by another version of balsam_exec")
    return stamp, memoryview(data)[end + 1 :]


def _made_by(stamp: list[str]) -> str:
    """Where a payload that does not load comes from, and where that was found out: mostly the reason."""
    here = f"Python {PYTHON} ({sys.executable})"
    if len(stamp) < 4:
        return f" in {here}"
    name = codec_name(stamp[1])
    return f" of Python {stamp[2]} with {name} {stamp[3]} in {here} with {name} {_version(name)}"


def _hint(stamp: list[str]) -> str:
    """What to do about a payload that does not load, where it was made by other versions than we have."""
    if len(stamp) < 4:
        return ""
    name = codec_name(stamp[1])
    if stamp[3] != _version(name):
        return f" (if it is for the version: {sys.executable} -m pip install {name}=={stamp[3]})"
    return f" (if it is for the version: set python_exe to a Python {stamp[2]})" if stamp[2] != PYTHON else ""


def _version(name: str) -> str:
    return getattr(sys.modules.get(name), "__version__", "none")


def _check_python(stamp: list[str], body: memoryview) -> None:
    made_by = stamp[2]
    if made_by != PYTHON and any(mark in bytes(body) for mark in _CODE_MARKS):
        raise CodecError(
            f"the payload holds code compiled by Python {made_by}, and this is Python {PYTHON} ({sys.executable}): "
            f"set python_exe to a Python {made_by}, or move the code into a module installed on both sides"
        )


def _import(codec: str) -> Any:
    name = codec_name(codec)
    try:
        return __import__(name)
    except ImportError as exc:
        fix = f"{sys.executable} -m pip install {name}"
        raise CodecError(f"{sys.executable} has no {name}: install it there, {fix}") from exc


def _brief(value: Any) -> str:
    name = getattr(value, "__qualname__", None)
    return f"{name}" if isinstance(name, str) else f"an object of type {type(value).__qualname__}"
