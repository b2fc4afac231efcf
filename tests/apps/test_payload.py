"""Payloads: what goes out comes back, in another process too, and what cannot is a clear error."""

from __future__ import annotations

import collections
import datetime
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import dill
import numpy as np
import pytest

from balsam_exec.apps import codec, payload
from balsam_exec.model.apps import Isolation
from balsam_exec.model.errors import JobFailed, JobTimeout, PayloadError, WorkerDied
from balsam_exec.model.jobs import Result


class Base:
    """As ApplicationDefinition: it acts when it is subclassed."""

    subclasses = 0

    def __init_subclass__(cls) -> None:
        Base.subclasses += 1


class Other:
    pass


class TwoArguments(Exception):
    """Its pickle does not load, by the standard library's way, which is to call it with one. (Packages that another
    test imports, tblib for one, would know a better way.)"""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")

    def __reduce__(self) -> tuple[Any, ...]:
        return TwoArguments, self.args


def local_app(**attributes: Any) -> Any:
    factor = 3

    def scale(x: int) -> int:
        return x * factor

    class Scale(Base):
        site = attributes.get("site", "here")
        offset = 1

        def run(self, x: int) -> int:
            return scale(x) + self.offset

    return Scale


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"a": [1, 2.5, (True, b"x", "ü")], "b": {1, 2}},
        datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        Path("/a/b"),
        collections.OrderedDict(a=1),
        ValueError("x").args,
    ],
)
def test_plain_data_goes_by_the_standard_pickle(value: Any) -> None:
    data = payload.dump(value)
    assert data.startswith(b"bx1 p\n")
    assert payload.load(data) == value


def test_arrays_are_plain_unless_they_hold_objects_that_are_not() -> None:
    array = np.arange(6.0).reshape(2, 3)
    data = payload.dump(array)
    assert data.startswith(b"bx1 p\n")
    assert np.array_equal(payload.load(data), array)
    holder = np.array([lambda: 4], dtype=object)
    data = payload.dump(holder)
    assert data.startswith(b"bx1 d ")
    assert payload.load(data)[0]() == 4


@pytest.mark.parametrize("value", [lambda x: x + 1, [lambda x: x + 1], {"f": collections.defaultdict(lambda: 1)}])
def test_functions_travel_by_value_wherever_they_hide(value: Any) -> None:
    assert not payload.dump(value).startswith(b"bx1 p\n")
    payload.load(payload.dump(value))


def test_an_app_leaves_its_base_behind() -> None:
    app = local_app()
    data = payload.dump_app(app, Base)
    assert b"test_payload" not in data.split(b"co_filename")[0][:60]
    before = Base.subclasses
    loaded = payload.load_app(data, Other)
    assert issubclass(loaded, Other)
    assert not issubclass(loaded, Base)
    assert Base.subclasses == before
    assert loaded().run(5) == 16
    assert loaded.site == "here"


def test_an_app_s_site_object_stays_behind() -> None:
    app = local_app(site=threading.current_thread())
    assert payload.load_app(payload.dump_app(app, Base), Base).site is None


def test_an_app_loads_in_a_python_without_this_package(tmp_path: Path) -> None:
    (tmp_path / "app").write_bytes(payload.dump_app(local_app(), Base))
    code = f"""
import importlib.util, sys
assert "balsam_exec" not in sys.modules
spec = importlib.util.spec_from_file_location("codec", {codec.__file__!r})
codec = importlib.util.module_from_spec(spec); spec.loader.exec_module(codec)
print(codec.load_app(open("app", "rb").read(), object)().run(2))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout == "7\n", done.stderr


def test_a_call_and_its_app() -> None:
    function, arguments = codec.split_call(payload.dump_call(lambda x, y=0: x - y, [5], {"y": 2}))
    args, kwargs = codec.loads(arguments)
    assert codec.loads(function)(*args, **kwargs) == 3

    app = payload.call_app(4, ["/a", "/b"])
    assert app.payload is not None
    assert codec.load_call_app(app.payload) == (["/a", "/b"], None)
    assert codec.load_call_app(payload.dump_app(local_app(), Base)) is None
    others = {payload.call_app(4, ["/a"]).name, payload.call_app(4, ["/a", "/b"], Isolation.PROCESS).name}
    assert app.name not in others
    assert payload.call_app(4, ["/a", "/b"]) == app


def test_arguments_return_as_they_were_given() -> None:
    assert payload.load_arguments(payload.dump_arguments([1], {"b": 2})) == ((1,), {"b": 2})


def test_what_cannot_be_serialized_is_a_payload_error_that_names_it() -> None:
    class Stubborn:
        def __reduce__(self) -> Any:
            raise RuntimeError("never")

    with pytest.raises(PayloadError, match=r"Stubborn.*RuntimeError: never"):
        payload.dump(Stubborn())


@pytest.mark.parametrize("data", [b"", b"bx1", b"bx2 d 3.11 0.4\nxyz", b"\x80\x04K\x01."])
def test_what_is_no_payload_is_refused(data: bytes) -> None:
    with pytest.raises(PayloadError, match="not a payload of format bx1"):
        payload.load(data)


@pytest.mark.parametrize("data", [b"bx1 p\n", b"bx1 p\ngarbage", b"bx1 d 3.11 0.4.1\ngarbage", b"bx1 zz\nx"])
def test_damaged_payloads_are_payload_errors(data: bytes) -> None:
    with pytest.raises(PayloadError):
        payload.load(data)


@pytest.mark.parametrize("dump", [lambda: payload.dump(lambda: 1), lambda: payload.dump_app(local_app(), Base)])
def test_code_of_another_python_is_refused_before_it_is_loaded(dump: Any) -> None:
    data = dump().replace(f" {codec.PYTHON} ".encode(), b" 3.8 ", 1)
    with pytest.raises(PayloadError, match=r"compiled by Python 3\.8, and this is Python .* set python_exe"):
        payload.load_app(data)


def test_what_does_not_load_says_who_made_it_and_who_tried() -> None:
    with pytest.raises(PayloadError, match=r"of Python 3\.11 with dill 0\.3\.1 in Python .* with dill \d"):
        payload.load(b"bx1 d 3.11 0.3.1\ngarbage")


def test_what_does_not_load_and_was_made_by_other_versions_says_which_to_install() -> None:
    with pytest.raises(PayloadError, match=rf"{re.escape(sys.executable)} -m pip install dill==0\.3\.1\)"):
        payload.load(f"bx1 d {codec.PYTHON} 0.3.1\ngarbage".encode())
    with pytest.raises(PayloadError, match=r"set python_exe to a Python 3\.8\)"):
        payload.load(f"bx1 d 3.8 {dill.__version__}\ngarbage".encode())
    with pytest.raises(PayloadError) as caught:
        payload.load(f"bx1 d {codec.PYTHON} {dill.__version__}\ngarbage".encode())
    assert "if it is for the version" not in str(caught.value)


def test_data_of_another_python_is_welcome() -> None:
    data = payload.dump(TwoArguments)  # by reference: no code in it
    assert payload.load(data.replace(f" {codec.PYTHON} ".encode(), b" 3.8 ", 1)) is TwoArguments


def test_an_exception_comes_back_as_itself_with_the_remote_traceback() -> None:
    try:
        raise KeyError("k")
    except KeyError as exc:
        data, text = payload.dump_exception(exc)
    with pytest.raises(KeyError, match="k") as caught:
        payload.load_result(Result(ok=False, exception=data, error=text, reason="exception"))
    assert "test_payload.py" in str(caught.value.__cause__)


def test_an_exception_that_does_not_survive_comes_back_as_text() -> None:
    data, text = payload.dump_exception(TwoArguments(1, 2))
    assert data is None
    with pytest.raises(JobFailed, match="TwoArguments: 1 and 2"):
        payload.load_result(Result(ok=False, exception=data, error=text, reason="exception"))


def test_an_exception_that_cannot_even_be_shown() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    _, text = payload.dump_exception(Mute())
    assert "Mute" in text


def test_an_exception_that_loads_nowhere_but_there_keeps_its_text() -> None:
    missing = b"bx1 p\ncno_such_module\nOops\n."
    with pytest.raises(JobFailed, match="it broke") as caught:
        payload.load_result(Result(ok=False, exception=missing, error="it broke", reason="exception"))
    assert "no_such_module" in str(caught.value)


@pytest.mark.parametrize(
    ("reason", "kind"), [("died", WorkerDied), ("timeout", JobTimeout), ("exit", JobFailed), ("", JobFailed)]
)
def test_failures_without_an_exception(reason: str, kind: type[JobFailed]) -> None:
    with pytest.raises(JobFailed, match="what happened") as caught:
        payload.load_result(Result(ok=False, error="what happened", reason=reason, return_code=-9))
    assert type(caught.value) is kind
    assert caught.value.detail == {"return_code": -9}


def test_values_come_back() -> None:
    assert payload.load_result(Result(ok=True, value=payload.dump({"a": 1}))) == {"a": 1}
    assert payload.load_result(Result(ok=True)) is None
