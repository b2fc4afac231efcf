"""Python apps and calls in real workers, run by a real launcher over a service in memory."""

from __future__ import annotations

import ctypes
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dill
import pytest

from balsam_exec.apps import codec, payload
from balsam_exec.model.apps import AppRecord, Isolation
from balsam_exec.model.base import MAX_ENTITY
from balsam_exec.model.errors import JobFailed, PayloadError, TooLarge, WorkerDied
from balsam_exec.model.states import JobState
from tests.launcher.conftest import Running
from tests.launcher.fake_service import FakeService
from tests.support.processes import wait_gone, wait_until

Launch = Callable[..., Running]


class Bench:
    """Submits calls and hands back what becomes of them."""

    def __init__(self, service: FakeService, data: Path, isolation: Isolation) -> None:
        self.service = service
        self.data = data
        spec = payload.call_app(1, isolation=isolation)
        self.app = service.add_app(hooks=["run"], payload=spec.payload, isolation=isolation)

    def submit(self, function: Callable[..., Any], *args: Any, **job: Any) -> int:
        fields = {"node_packing_count": 8, **job}
        return self.service.add_job(self.app, arguments=payload.dump_call(function, args, {}), **fields)

    def result(self, job_id: int) -> Any:
        self.service.wait([job_id])
        return payload.load_result(self.service.results[job_id])

    def run(self, function: Callable[..., Any], *args: Any, **job: Any) -> Any:
        return self.result(self.submit(function, *args, **job))

    def output(self, workdir: str) -> str:
        return (self.data / workdir / "job.out").read_text()


@pytest.fixture(params=list(Isolation))
def isolation(request: pytest.FixtureRequest) -> Isolation:
    return Isolation(request.param)


@pytest.fixture
def bench(service: FakeService, launch: Launch, tmp_path: Path, isolation: Isolation) -> Bench:
    launch()
    return Bench(service, tmp_path / "data", isolation)


@pytest.fixture
def warm(service: FakeService, launch: Launch, tmp_path: Path) -> Bench:
    launch(cores=1)
    return Bench(service, tmp_path / "data", Isolation.WORKER)


def app_of(service: FakeService, cls: type, **fields: Any) -> AppRecord:
    return service.add_app(hooks=["run"], payload=payload.dump_app(cls), **fields)


def script(source: str) -> Any:
    """Functions as a person's own script defines them: not importable, so they travel by value."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(source, names)
    return names


MINE = script("""
class TwoArguments(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")

class Point:
    def __init__(self, x):
        self.x = x

def double(point):
    return Point(2 * point.x)

def two_arguments():
    raise TwoArguments(1, 2)
""")


# --- results and errors, in both ways of isolation


def test_values_return(bench: Bench) -> None:
    assert bench.run(divmod, 7, 2) == (3, 1)
    assert bench.run(lambda: {"a": [None, b"x"]}) == {"a": [None, b"x"]}


def test_classes_keep_their_identity(bench: Bench) -> None:
    doubled = bench.run(MINE["double"], MINE["Point"](4))
    assert type(doubled) is MINE["Point"]
    assert doubled.x == 8


def test_exceptions_return_with_their_remote_traceback(bench: Bench) -> None:
    def inner() -> None:
        raise KeyError("key")

    with pytest.raises(KeyError, match="key") as caught:
        bench.run(inner, workdir="w")
    remote = str(caught.value.__cause__)
    assert "in inner" in remote
    assert "worker.py" not in remote
    assert "KeyError: 'key'" in bench.output("w")
    assert "KeyError: 'key'" in bench.service.history[1][-1].data["error"]


def test_an_exception_that_does_not_survive_the_journey_is_told_as_text(bench: Bench) -> None:
    with pytest.raises(JobFailed, match="TwoArguments: 1 and 2"):
        bench.run(MINE["two_arguments"])


def test_a_result_that_cannot_be_serialized_is_a_clear_error(bench: Bench) -> None:
    with pytest.raises(PayloadError, match="cannot serialize an object of type socket"):
        bench.run(lambda: __import__("socket").socket())
    assert bench.run(abs, -1) == 1


def test_a_result_that_is_too_large_is_a_clear_error(bench: Bench) -> None:
    with pytest.raises(TooLarge, match=f"the limit is {MAX_ENTITY}"):
        bench.run(bytes, MAX_ENTITY)
    assert len(bench.run(bytes, MAX_ENTITY - 100)) == MAX_ENTITY - 100


def test_the_largest_arguments_arrive(bench: Bench) -> None:
    assert bench.run(len, bytes(MAX_ENTITY - 200)) == MAX_ENTITY - 200


def test_arguments_that_do_not_load_are_a_clear_error(bench: Bench) -> None:
    job_id = bench.service.add_job(bench.app, arguments=b"bx1 p\ncno_such_module\nOops\n.")
    with pytest.raises(PayloadError, match="this is no call"):
        bench.result(job_id)


@pytest.mark.parametrize(("code", "number"), [(3, 3), (None, 0), ("bye", 1)])
def test_sys_exit_fails_the_job_and_not_the_caller(bench: Bench, code: Any, number: int) -> None:
    with pytest.raises(JobFailed, match=f"sys.exit: exit code {number}") as caught:
        bench.run(sys.exit, code)
    assert caught.value.detail["return_code"] == number


@pytest.mark.parametrize(
    ("death", "text"),
    [
        (lambda: os._exit(5), "exit code 5"),
        (lambda: ctypes.string_at(0), "killed by SIGSEGV"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "killed by SIGKILL; perhaps it ran out of memory"),
    ],
)
def test_a_death_fails_only_its_job(bench: Bench, death: Callable[[], Any], text: str) -> None:
    def die() -> None:
        print("last words", flush=True)
        death()

    def slow(i: int) -> int:
        time.sleep(0.05)
        return i

    others = [bench.submit(slow, i) for i in range(4)]
    doomed = bench.submit(die, workdir="doomed")
    with pytest.raises(WorkerDied, match=text) as caught:
        bench.result(doomed)
    assert "last words" in str(caught.value)
    assert [bench.result(other) for other in others] == [0, 1, 2, 3]
    assert bench.run(abs, -2) == 2


def test_os_exit_0_is_a_death_too(warm: Bench) -> None:
    with pytest.raises(WorkerDied, match="exit code 0"):
        warm.run(os._exit, 0)


def test_a_segmentation_fault_says_where(bench: Bench) -> None:
    with pytest.raises(WorkerDied, match="Fatal Python error: Segmentation fault"):
        bench.run(ctypes.string_at, 0)


# --- each job as if it ran alone


def test_output_goes_to_each_job_s_own_file(bench: Bench) -> None:
    def talk(word: str) -> None:
        print(word)
        print(word, file=sys.stderr)
        os.write(1, f"{word} by fd\n".encode())
        subprocess.run(["echo", word, "by child"], check=True)
        ctypes.CDLL(None).printf(f"{word} by C\n".encode())

    for word in ("one", "two"):
        bench.run(talk, word, workdir=word)
    for word in ("one", "two"):
        assert sorted(bench.output(word).splitlines()) == sorted(
            [word, word, f"{word} by fd", f"{word} by child", f"{word} by C"]
        )


def test_jobs_in_one_workdir_append(bench: Bench) -> None:
    for word in ("one", "two"):
        bench.run(print, word, workdir="shared")
    assert bench.output("shared") == "one\ntwo\n"


def test_cwd_is_the_workdir_whatever_the_last_job_did(bench: Bench, tmp_path: Path) -> None:
    bench.run(os.chdir, "/", workdir="a")
    for workdir in ("a", "b", "a"):
        assert bench.run(os.getcwd, workdir=workdir) == str(tmp_path / "data" / workdir)


def test_a_workdir_that_was_removed_is_made_again(warm: Bench) -> None:
    def vanish() -> None:
        os.rename(os.getcwd(), os.getcwd() + ".gone")

    warm.run(vanish, workdir="w")
    warm.run(print, "again", workdir="w")
    assert warm.output("w") == "again\n"


def test_the_environment_is_restored(warm: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil() -> None:
        os.environ["NEW"] = "1"
        os.environ["HOME"] = "changed"
        del os.environ["PATH"]

    def look() -> list[str | None]:
        shown = subprocess.run(["/usr/bin/env"], capture_output=True, text=True, check=True).stdout
        child = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
        names = ("NEW", "HOME", "PATH", "BALSAM_JOB_ID")
        assert [os.environ.get(name) for name in names] == [child.get(name) for name in names]
        return [os.environ.get(name) for name in names]

    warm.run(spoil)
    assert warm.run(look) == [None, os.environ["HOME"], os.environ["PATH"], "2"]


def test_stdout_is_restored_whatever_the_last_job_did(warm: Bench) -> None:
    def close() -> None:
        sys.stdout.close()
        sys.stderr = None
        os.close(1)

    warm.run(close)
    warm.run(print, "still here", workdir="w")
    assert warm.output("w") == "still here\n"


def test_our_own_files_are_not_importable(warm: Bench) -> None:
    def find(name: str) -> bool:
        import importlib.util

        return importlib.util.find_spec(name) is not None

    assert not any(warm.run(find, name) for name in ("worker", "pilot", "outbox"))


# --- workers


def test_workers_are_used_again(warm: Bench) -> None:
    assert len({warm.run(os.getpid) for _ in range(5)}) == 1


def test_isolated_jobs_have_a_process_each(service: FakeService, launch: Launch, tmp_path: Path) -> None:
    launch(cores=1)
    bench = Bench(service, tmp_path / "data", Isolation.PROCESS)
    pids = [bench.run(lambda: (os.getpid(), os.getppid())) for _ in range(3)]
    assert len({pid for pid, _ in pids}) == 3
    assert len({parent for _, parent in pids}) == 1


def test_functions_see_their_own_globals_in_a_warm_worker(warm: Bench) -> None:
    first, second = (script(f"X = {n}\ndef f():\n    return X")["f"] for n in (1, 2))
    assert [warm.run(f) for f in (first, second, first)] == [1, 2, 1]


def test_modules_beside_the_caller_s_script_can_be_imported(
    service: FakeService, launch: Launch, tmp_path: Path
) -> None:
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside/my_own_module.py").write_text("def f():\n    return 'mine'\n")
    spec = payload.call_app(1, ["/no/such/dir", str(tmp_path / "beside")])
    app = service.add_app(hooks=["run"], payload=spec.payload)
    launch()
    sys.path.append(str(tmp_path / "beside"))
    try:
        arguments = payload.dump_call(importlib.import_module("my_own_module").f, (), {})
    finally:
        sys.path.remove(str(tmp_path / "beside"))
    job_id = service.add_job(app, arguments=arguments)
    service.wait([job_id])
    assert payload.load_result(service.results[job_id]) == "mine"


def test_an_application_definition_runs(service: FakeService, launch: Launch) -> None:
    class Adder:
        calls: list[int] = []

        def run(self, x: int, y: int = 0) -> int:
            return x + y

    app = app_of(service, Adder)
    launch()
    job_id = service.add_job(app, arguments=payload.dump_arguments([5], {"y": 6}))
    service.wait([job_id])
    assert payload.load_result(service.results[job_id]) == 11


def test_a_changed_app_is_loaded_again(service: FakeService, launch: Launch) -> None:
    def versions(n: int) -> type:
        class Version:
            def run(self) -> int:
                return n

        return Version

    launch(cores=1)
    got = []
    for n in (1, 2, 1):
        app = app_of(service, versions(n), id=1)
        job_id = service.add_job(app)
        service.wait([job_id])
        got.append(payload.load_result(service.results[job_id]))
    assert got == [1, 2, 1]


def test_an_app_that_does_not_load_says_why(service: FakeService, launch: Launch) -> None:
    data = payload.dump_app(type("App", (), {"run": lambda self: 1})).replace(b" 3.", b" 2.", 1)
    launch()
    job_id = service.add_job(service.add_app(hooks=["run"], payload=data))
    service.wait([job_id])
    with pytest.raises(PayloadError, match="compiled by Python 2"):
        payload.load_result(service.results[job_id])


def test_an_app_that_was_deleted_says_so(service: FakeService, launch: Launch) -> None:
    app = service.add_app(command_template="true")
    job_id = service.add_job(app)
    service.apps.clear()
    launch()
    service.wait([job_id])
    assert "no longer exists" in service.results[job_id].error


def test_environment_variables_are_there_when_the_worker_starts(service: FakeService, launch: Launch) -> None:
    (tmp := Path(os.environ["BALSAM_HOME"]) / "lib").mkdir(parents=True)
    (tmp / "only_on_pythonpath.py").write_text("import os\nVALUE = os.environ['MINE']\n")
    launch(cores=1)
    spec = payload.call_app(1)
    values = []
    for mine in ("a", "b"):
        variables = {"MINE": mine, "PYTHONPATH": str(tmp)}
        app = service.add_app(hooks=["run"], payload=spec.payload, environment_variables=variables)
        job_id = service.add_job(
            app, arguments=payload.dump_call(lambda: __import__("only_on_pythonpath").VALUE, (), {})
        )
        service.wait([job_id])
        values.append(payload.load_result(service.results[job_id]))
    assert values == ["a", "b"]


def test_python_exe_may_be_a_python_without_this_package(service: FakeService, launch: Launch, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True, timeout=60)
    python = str(venv / "bin/python")
    launch()
    spec = payload.call_app(1)
    app = service.add_app(hooks=["run"], payload=spec.payload, python_exe=python)

    plain = service.add_job(app, arguments=payload.dump_call(divmod, (7, 2), {}))
    by_value = service.add_job(app, arguments=payload.dump_call(lambda: 1, (), {}))
    own = service.add_job(app_of(service, type("App", (), {"run": lambda self: 1}), python_exe=python))
    service.wait([plain, by_value, own])
    assert payload.load_result(service.results[plain]) == (3, 1)
    with pytest.raises(PayloadError, match=f"{python} has no cloudpickle: install it there"):
        payload.load_result(service.results[by_value])
    with pytest.raises(PayloadError, match=f"{python} has no dill: install it there"):
        payload.load_result(service.results[own])


def other_pythons() -> list[str]:
    """Interpreters of other versions on this machine, one of each."""
    names = [f"python3.{minor}" for minor in range(8, 20) if minor != sys.version_info[1]]
    of_pyenv = Path("~/.pyenv/versions").expanduser()  # not its shims, which work only where they are chosen
    found = [next(of_pyenv.glob(f"{name[6:]}.*/bin/{name}"), None) or shutil.which(name) for name in names]
    return [str(path) for path in found if path and "shims" not in Path(path).parts]


@pytest.mark.parametrize("python", other_pythons() or [pytest.param("", marks=pytest.mark.skip("there is only one"))])
def test_another_python_runs_what_it_can_and_refuses_the_rest(
    service: FakeService, launch: Launch, tmp_path: Path, python: str
) -> None:
    """Code of another version may crash an interpreter, so it must not even be loaded."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/dill").symlink_to(Path(dill.__file__).parent)
    (tmp_path / "lib/shared.py").write_text(
        "import sys\ndef version(): return sys.version_info[1]\nclass Shared:\n    run = lambda self: version()\n"
    )
    sys.path.append(str(tmp_path / "lib"))
    try:
        shared = importlib.import_module("shared").Shared
        fields = {"python_exe": python, "environment_variables": {"PYTHONPATH": str(tmp_path / "lib")}}
        by_reference = app_of(service, shared, **fields)
    finally:
        sys.path.remove(str(tmp_path / "lib"))
        sys.modules.pop("shared", None)
    by_value = app_of(service, type("App", (), {"run": lambda self: 1}), **fields)
    launch()
    jobs = [service.add_job(app) for app in (by_value, by_reference, by_value)]
    service.wait(jobs)
    mine, theirs = (re.escape(f"Python {version}") for version in (codec.PYTHON, python.rpartition("python")[2]))
    for refused in (jobs[0], jobs[2]):
        with pytest.raises(
            PayloadError, match=f"compiled by {mine}, and this is {theirs} .*: set python_exe to a {mine}"
        ):
            payload.load_result(service.results[refused])
    assert payload.load_result(service.results[jobs[1]]) == int(python.rpartition(".")[2])


@pytest.mark.parametrize(("python", "error"), [("/no/such/python", "No such file"), ("/bin/false", "exit code 1")])
def test_python_exe_that_is_none(service: FakeService, launch: Launch, python: str, error: str) -> None:
    launch()
    job_id = service.add_job(app_of(service, type("App", (), {"run": lambda self: 1}), python_exe=python))
    service.wait([job_id])
    assert error in service.results[job_id].error


def test_a_forked_child_that_returns_does_no_harm(warm: Bench) -> None:
    def fork() -> int:
        pid = os.fork()
        return pid and os.waitpid(pid, 0)[1]

    assert warm.run(fork) == 0
    assert warm.run(abs, -3) == 3


def test_a_worker_that_closes_its_channel_is_replaced(warm: Bench) -> None:
    def close_everything() -> None:
        os.closerange(3, 65536)
        time.sleep(30)

    with pytest.raises(WorkerDied):
        warm.run(close_everything)
    assert warm.run(abs, -4) == 4


def test_workers_end_with_the_launcher(service: FakeService, launch: Launch, tmp_path: Path) -> None:
    running = launch(idle=0.2)
    bench = Bench(service, tmp_path / "data", Isolation.WORKER)

    def linger() -> int:
        threading.Thread(target=time.sleep, args=(100,)).start()
        return os.getpid()

    pid = bench.run(linger)
    assert running.join()
    assert wait_gone(pid, 5)


def test_a_drain_ends_a_call_and_what_it_started(service: FakeService, launch: Launch, tmp_path: Path) -> None:
    def hang() -> None:
        print(subprocess.Popen(["sleep", "100"]).pid, flush=True)
        time.sleep(100)

    running = launch()
    bench = Bench(service, tmp_path / "data", Isolation.WORKER)
    job_id = bench.submit(hang, workdir="w")
    output = tmp_path / "data/w/job.out"
    wait_until(lambda: output.exists() and output.read_text().endswith("\n"), 20, "the call")
    running.launcher.drain("enough")
    assert running.join()
    assert service.state[job_id] is JobState.RUN_TIMEOUT
    assert wait_gone(int(output.read_text()), 5)


def test_a_workdir_that_cannot_be_used_is_a_clear_error(bench: Bench) -> None:
    (bench.data / "w/job.out").mkdir(parents=True)
    with pytest.raises(JobFailed, match=r"cannot use the job's workdir: .*Is a directory"):
        bench.run(abs, 1, workdir="w")
    assert bench.run(abs, -1) == 1


def test_output_files_of_their_own(bench: Bench) -> None:
    """Call after call in the same worker and workdir, each prints to its own files."""

    def talk(word: str, fail: bool = False) -> None:
        print("out", word, flush=True)
        os.system(f"echo err {word} >&2")
        if fail:
            raise ValueError(word)

    def die() -> None:
        print("last words", file=sys.stderr, flush=True)
        os._exit(7)

    fields = {"workdir": "w"}
    bench.run(talk, "together", **fields)
    bench.run(talk, "apart", **fields, stdout="logs/o", stderr="logs/e")
    with pytest.raises(ValueError, match="again"):
        bench.run(talk, "again", True, **fields, stdout="logs/o", stderr="logs/e")
    bench.run(talk, "once more", **fields)
    workdir = bench.data / "w"
    assert bench.output("w").splitlines() == ["out together", "err together", "out once more", "err once more"]
    assert (workdir / "logs/o").read_text() == "out apart\nout again\n"
    err = (workdir / "logs/e").read_text()
    assert err.startswith("err apart\nerr again\nTraceback")
    assert err.endswith("ValueError: again\n")
    with pytest.raises(WorkerDied, match="exit code 7\nlast words"):
        bench.run(die, **fields, stdout="quiet", stderr="logs/e")
