"""A warm process that runs the calls of Python apps, one after the other, for a launcher.

    PYTHON worker.py FD LIMIT CODEC_FILE

Started by its path, maybe by an interpreter in which this package is not installed: standard library only, Python 3.8
and up. FD is a socket to the launcher; it ends when that does. Each request is a pickled tuple,

    ("app", DIGEST, PAYLOAD, ISOLATED) or ("call", DIGEST, ARGUMENTS, WORKDIR, OUTPUTS, ENVIRONMENT)

and only a call is answered, with one frame: its length, a status (below), a number, then bytes. Results never share a
channel with what the app prints: stdout and stderr go to files of the job's workdir.
"""

from __future__ import annotations

import faulthandler
import importlib.util
import os
import pickle
import socket
import struct
import sys
import traceback
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

REQUEST = struct.Struct("!I")
#: Length of the body, status, number.
ANSWER = struct.Struct("!IBi")

VALUE = 0  #: body: the value's payload
RAISED = 1  #: number: bytes of the exception's payload (0: none); body: it, and the traceback as text
BROKEN = 2  #: body: why app, arguments or result could not be loaded or serialized
TOO_LARGE = 3  #: number: bytes of the result; body: the limit, which is less
EXITED = 4  #: the app called sys.exit; number: the exit code, body: its message
CANNOT_RUN = 5  #: body: why the app cannot run here: no workdir, no output file, no MPI that fits
DIED = 6  #: the forked process of an isolated job died; number: its wait status

#: Functions of calls kept loaded, and the largest that is.
_FUNCTIONS = 64
_FUNCTION_BYTES = 256 * 1024


class Base:
    """Stands in for ApplicationDefinition where only `run` is wanted."""


class App:
    """An app, loaded when it is first called so that a failure belongs to that call."""

    def __init__(self, codec: Any, payload: bytes, isolated: bool) -> None:
        self.isolated = isolated
        self.codec = codec
        self._payload = payload
        self._cls: Any = None
        self._fixed: Callable[..., Any] | None = None  #: the function of an app of calls that has one
        self._functions: OrderedDict[bytes, Callable[..., Any]] = OrderedDict()
        self.codec_name = codec.DILL

    def load(self) -> None:
        if self._cls is not None:
            return
        calls = self.codec.load_call_app(self._payload)
        if calls is None:
            self._cls = self.codec.load_app(self._payload, Base)
        else:
            sys_path, function = calls
            sys.path.extend(entry for entry in sys_path if entry not in sys.path and os.path.isdir(entry))
            self.codec_name = self.codec.CLOUDPICKLE
            self._fixed = function and self.codec.loads(function)
            self._cls = Base

    def bind(self, data: bytes) -> Callable[[], Any]:
        """The call, ready to be made."""
        if self._cls is not Base:
            args, kwargs = self.codec.loads(data)
            instance = self._cls.__new__(self._cls)
            return lambda: instance.run(*args, **kwargs)
        function, arguments = self._fixed, data
        if function is None:
            code, arguments = self.codec.split_call(data)
            function = self._function(code)
        args, kwargs = self.codec.loads(arguments)
        return lambda: function(*args, **kwargs)

    def _function(self, code: bytes) -> Callable[..., Any]:
        function = self._functions.get(code)
        if function is not None:
            self._functions.move_to_end(code)
            return function
        loaded: Callable[..., Any] = self.codec.loads(code)
        if len(code) <= _FUNCTION_BYTES:
            self._functions[code] = loaded
            if len(self._functions) > _FUNCTIONS:
                self._functions.popitem(last=False)
        return loaded


class Surroundings:
    """What a job finds as if it ran alone: cwd, stdout and stderr, environment; put right before each call."""

    def __init__(self) -> None:
        self._streams = sys.stdout, sys.stderr
        # The encoded variables behind os.environ: comparing them takes a microsecond, copying os.environ twenty.
        self._environ = dict(os.environ._data)  # type: ignore[attr-defined]
        self._place: Any = None  # the workdir and output files that we are in
        self._outputs: list[int] = []  # descriptors of the files of stderr and stdout, one where they go together
        self._flush_libc = _libc_flush()

    def enter(self, workdir: str, outputs: tuple[str, ...], environment: dict[str, str]) -> None:
        try:
            os.chdir(workdir)
        except FileNotFoundError:
            os.makedirs(workdir, exist_ok=True)
            os.chdir(workdir)
            self._place = None
        if self._place != (workdir, outputs):
            self._place = None
            while self._outputs:
                os.close(self._outputs.pop())
            for name in outputs:
                self._outputs.append(_open_output(name))
            self._place = workdir, outputs
        self._redirect()
        os.environ.update(environment)

    def _redirect(self) -> None:
        os.dup2(self._outputs[-1], 1)
        os.dup2(self._outputs[0], 2)

    def leave(self, environment: dict[str, str]) -> None:
        for name in environment:
            os.environ.pop(name, None)
        if os.environ._data != self._environ:  # type: ignore[attr-defined]
            self._restore_environment()
        for stream in (sys.stdout, sys.stderr, *self._streams):
            try:
                stream.flush()
            except (AttributeError, ValueError, OSError):  # None, closed, or the disk is full: the job's own affair
                continue
        self._flush_libc(None)
        if self._streams[0].closed or self._streams[1].closed:
            self._redirect()
            self._streams = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)
        sys.stdout, sys.stderr = self._streams

    def _restore_environment(self) -> None:
        for name in list(os.environb):
            if name not in self._environ:
                del os.environb[name]
        os.environb.update(self._environ)


class Worker:
    def __init__(self, channel: socket.socket, limit: int, codec: Any) -> None:
        self._channel = channel
        self._stream = channel.makefile("rb")
        self._limit = limit
        self._codec = codec
        self._apps: dict[str, App] = {}
        self._surroundings = Surroundings()

    def serve(self) -> None:
        """Until the launcher closes the channel."""
        while True:
            head = self._stream.read(REQUEST.size)
            if len(head) < REQUEST.size:
                return
            request = pickle.loads(self._stream.read(*REQUEST.unpack(head)))
            if request[0] == "app":
                _, digest, payload, isolated = request
                self._apps[digest] = App(self._codec, payload, isolated)
            else:
                _, digest, arguments, workdir, outputs, environment = request
                self._channel.sendall(self._call(self._apps[digest], arguments, workdir, outputs, environment))

    def _call(
        self, app: App, arguments: bytes, workdir: str, outputs: tuple[str, ...], environment: dict[str, str]
    ) -> bytes:
        pid = os.getpid()
        try:
            self._surroundings.enter(workdir, outputs, environment)
        except OSError as exc:
            return answer(CANNOT_RUN, f"cannot use the job's workdir: {exc}")
        try:
            return self._run_forked(app, arguments) if app.isolated else run(app, arguments, self._limit)
        finally:
            self._surroundings.leave(environment)
            if os.getpid() != pid:  # a child that the app forked and that came back from it: it has no business here
                os._exit(0)

    def _run_forked(self, app: App, arguments: bytes) -> bytes:
        """In a process of its own. Its answer comes through a file in memory: unlike a pipe it needs no reader, and no
        grandchild can hold it open."""
        try:
            app.load()  # here, once for all processes that are forked
        except self._codec.CodecError as exc:
            return answer(BROKEN, str(exc))
        report = os.memfd_create("answer")
        try:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            pid = os.fork()
            if pid == 0:
                os._exit(self._child(app, arguments, report))
            status = os.waitpid(pid, 0)[1]
            if status != 0:
                return answer(DIED, b"", status)
            return os.pread(report, os.fstat(report).st_size, 0)
        finally:
            os.close(report)

    def _child(self, app: App, arguments: bytes, report: int) -> int:
        try:
            frame = run(app, arguments, self._limit)
            with open(report, "wb", closefd=False) as file:
                file.write(frame)
            self._surroundings.leave({})
        except BaseException:  # noqa: BLE001 this process must end here
            traceback.print_exc()
            return 70
        return 0


def run(app: App, arguments: bytes, limit: int, keep_value: bool = True) -> bytes:
    """Make the call; an answer, of the value only if it is to be kept. What it raises itself means a bug here."""
    try:
        app.load()
        return _run(app, arguments, limit, keep_value)
    except app.codec.CodecError as exc:
        return answer(BROKEN, str(exc))


def _run(app: App, arguments: bytes, limit: int, keep_value: bool) -> bytes:
    call = app.bind(arguments)
    try:
        value = call()
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
        return answer(EXITED, "" if isinstance(exc.code, int) else str(exc.code or ""), code & 0xFF)
    except BaseException as exc:  # noqa: BLE001 whatever an app raises is its result
        _drop_own_frames(exc)
        payload, text = app.codec.dump_exception(exc, app.codec_name)
        sys.stderr.write(text)
        if payload is not None and len(payload) > limit:
            text += f"(the exception has {len(payload)} bytes serialized and the limit is {limit}: this is its text)\n"
            payload = None
        payload = payload or b""
        return answer(RAISED, payload + text.encode("utf-8", "replace"), len(payload))
    result = app.codec.dumps(value, app.codec_name) if keep_value else b""
    if len(result) > limit:
        return answer(TOO_LARGE, str(limit), len(result))
    return answer(VALUE, result)


def answer(status: int, body: bytes | str, number: int = 0) -> bytes:
    data = body.encode("utf-8", "replace") if isinstance(body, str) else body
    return ANSWER.pack(len(data), status, number) + data


def _open_output(name: str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    try:
        return os.open(name, flags, 0o666)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(name), exist_ok=True)
        return os.open(name, flags, 0o666)


def _drop_own_frames(exc: BaseException) -> None:
    """So that a traceback starts with the app."""
    here = __file__
    while exc.__traceback__ is not None and exc.__traceback__.tb_frame.f_code.co_filename == here:
        exc.__traceback__ = exc.__traceback__.tb_next


def _libc_flush() -> Callable[[Any], Any]:
    """fflush of the C library: what extensions print goes to the job that printed it."""
    try:
        import ctypes

        flush: Callable[[Any], Any] = ctypes.CDLL(None).fflush
    except (ImportError, OSError, AttributeError):
        return lambda _: None
    return flush


def prepare(codec_file: str) -> Any:
    """Be a process of the app's own, as far as we can; returns the codec."""
    if sys.path and sys.path[0] == os.path.dirname(os.path.abspath(__file__)):
        del sys.path[0]  # our own files are nobody's modules
    sys.argv = [""]
    faulthandler.enable()
    return _load_codec(codec_file)


def _load_codec(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("_balsam_codec", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["_balsam_codec"] = module
    spec.loader.exec_module(module)
    return module


def main() -> None:
    fd, limit, codec_file = sys.argv[1:4]
    channel = socket.socket(fileno=int(fd))
    channel.set_inheritable(False)
    codec = prepare(codec_file)
    # We leave without the interpreter's shutdown: threads of an app must not keep a worker that nobody wants any more.
    try:
        Worker(channel, int(limit), codec).serve()
    except BaseException:  # noqa: BLE001 whatever it is, the launcher sees us end
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(70)
    os._exit(0)


if __name__ == "__main__":
    main()
