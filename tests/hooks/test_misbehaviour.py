"""Hooks that do not do what they should: their job fails and says why, and nobody else is harmed."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from balsam_exec.api import ApplicationDefinition, Job
from balsam_exec.embedded import Deployment
from balsam_exec.model.errors import JobFailed
from balsam_exec.model.states import JobState
from tests.hooks.conftest import Bench
from tests.support.processes import wait_gone, wait_until

pytestmark = pytest.mark.timeout(120)
S = JobState


@pytest.fixture(scope="module")
def module_deployment(tmp_path_factory: pytest.TempPathFactory, nothing_left_running: None) -> Any:
    """One where hooks have five seconds."""
    home = tmp_path_factory.mktemp("home")
    with Deployment.start(home):
        pass
    settings = home / "site/settings.yml"
    settings.write_text(settings.read_text().replace("hook_timeout_sec: 600", "hook_timeout_sec: 5"))
    with Deployment.start(home) as deployment:
        yield deployment


class Hooked(ApplicationDefinition):
    """Its hook does what the job's data say."""

    site = "local"
    command_template = "echo ran"

    def preprocess(self) -> None:
        import ctypes
        import os
        import subprocess
        import sys
        import time

        what = self.job.data["what"]
        print(f"about to {what}", flush=True)
        if what == "raise":
            raise KeyError("coordinates")
        if what == "odd name":
            raise FileNotFoundError(os.fsdecode(b"\xff\x00"))
        if what == "long":
            raise ValueError("this: " + 10_000 * "x")
        if what == "exit":
            sys.exit("enough")
        if what == "_exit":
            os._exit(3)
        if what == "crash":
            ctypes.string_at(0)
        if what == "hang":
            children = [
                subprocess.Popen(["sleep", "1000"]),
                subprocess.Popen(["setsid", "sleep", "1000"]),
                subprocess.Popen(["bash", "-c", "trap '' TERM; while :; do sleep 0.1; done"]),
            ]
            with open("pids", "w") as file:
                print(os.getpid(), *(child.pid for child in children), file=file)
            time.sleep(1000)
        if what == "leave":
            child = subprocess.Popen(["setsid", "sleep", "1000"])
            with open("pids", "w") as file:
                print(child.pid, file=file)
        if what == "forget":
            self.job.data["seen"] = True
            return
        if what == "fork" and os.fork() == 0:
            return
        if what == "set":
            for name, value in self.job.data["fields"].items():
                setattr(self.job, name, value)
            return
        if what == "unserializable":
            self.job.data["result"] = {1, 2}
        if what == "refused":
            self.job.data["text"] = chr(0)
        if what == "half a character":
            self.job.data["text"] = chr(0xD800)
        self.job.state = "PREPROCESSED"


def submit(what: str, **data: Any) -> Job:
    return Hooked.submit(f"hooked/{what}", data={"what": what, **data}, node_packing_count=4)


def succeeds(bench: Bench, what: str = "nothing") -> None:
    job = submit(what)
    job.result(timeout=60)
    assert "ran\n" in bench.output(job)


def test_raising(bench: Bench) -> None:
    job = submit("raise")
    said = bench.failure(job)
    assert said["hook"] == "preprocess"
    assert said["error"] == "KeyError: 'coordinates'"
    assert 'raise KeyError("coordinates")' in said["traceback"] or "in preprocess" in said["traceback"]
    assert "runner.py" not in said["traceback"]
    assert bench.log(job).startswith("about to raise\nTraceback")
    with pytest.raises(JobFailed, match="hook: preprocess; error: KeyError: 'coordinates'"):
        job.result(timeout=10)
    succeeds(bench)


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("odd name", r"FileNotFoundError: \udcff\0"),
        ("long", "ValueError: this: xxx"),
        ("exit", "SystemExit: enough"),
        ("_exit", "the process that ran it died: exit code 3"),
        ("crash", "the process that ran it died: killed by SIGSEGV"),
        ("unserializable", "TypeError: self.job.data is sent as JSON, and this is not"),
        ("half a character", "TypeError: self.job.data is sent as JSON, and this is not"),
        ("refused", "what it set in self.job is refused: a text holds a NUL character"),
    ],
)
def test_ways_to_fail(bench: Bench, what: str, error: str) -> None:
    job = submit(what)
    said = bench.failure(job)
    assert said["hook"] == "preprocess"
    assert said["error"].startswith(error)
    assert bench.log(job).startswith(f"about to {what}\n")
    succeeds(bench)


def test_hanging(bench: Bench) -> None:
    started = time.monotonic()
    job = submit("hang")
    path = bench.wait_for_file("hooked/hang/pids")
    said = bench.failure(job)
    assert "had not returned after 5 s (processing.hook_timeout_sec)" in said["error"]
    assert time.monotonic() - started < 40
    pids = [int(word) for word in path.read_text().split()]
    assert len(pids) == 4
    assert all(wait_gone(pid, 0) for pid in pids), "it was told before all was gone"
    succeeds(bench)


def test_what_a_hook_leaves_running_ends_with_it(bench: Bench) -> None:
    succeeds(bench, "leave")
    assert wait_gone(int((bench.data / "hooked/leave/pids").read_text()), 5)


def test_a_child_that_comes_back_from_the_hook_does_nothing(bench: Bench) -> None:
    succeeds(bench, "fork")
    assert bench.log_of("hooked/fork").count("about to fork") == 1


def test_forgetting_to_set_the_state(bench: Bench) -> None:
    job = submit("forget")
    said = bench.failure(job)
    assert said == {
        "hook": "preprocess",
        "error": "it left the job STAGED_IN: it has to set self.job.state to FAILED or PREPROCESSED",
    }
    job.refresh_from_db()
    assert job.data["seen"] is True


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        (
            {"state": "JOB_FINISHED"},
            "it set self.job.state to JOB_FINISHED; from STAGED_IN it may set FAILED or",
        ),
        ({"state": "DONE"}, "InvalidRequest: 'DONE' is not a state"),
        ({"state": "PREPROCESSED", "tags": {"a": 1}}, "InvalidRequest: Job: tags.a: Input should be a valid string"),
        ({"state": "PREPROCESSED", "id": 7}, "AttributeError: Job.id is set by the service"),
    ],
)
def test_setting_what_cannot_be(bench: Bench, fields: dict[str, Any], error: str) -> None:
    good = submit("nothing")
    said = bench.failure(submit("set", fields=fields))
    assert said["hook"] == "preprocess"
    assert error in said["error"]
    good.result(timeout=60)


def test_code_that_does_not_load_here(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_here.py").write_text("def answer():\n    return 42\n")
    monkeypatch.syspath_prepend(tmp_path)
    import only_here  # type: ignore[import-not-found]

    answer = only_here.answer

    class Lost(ApplicationDefinition):
        site = "local"
        command_template = "true"

        def preprocess(self) -> None:
            answer()
            self.job.state = "PREPROCESSED"

    said = bench.failure(Lost.submit("lost"))
    assert said["error"].startswith("the app's code cannot be loaded at the site")
    assert "only_here" in said["error"]


def test_a_job_killed_while_its_hook_runs(bench: Bench) -> None:
    (bench.data / "hooked/hang/pids").unlink(missing_ok=True)
    job = submit("hang")
    path = bench.wait_for_file("hooked/hang/pids")
    wait_until(lambda: len(path.read_text().split()) == 4, 10, "its pids")
    job.kill()
    assert job.state is S.USER_KILLED
    for pid in map(int, path.read_text().split()):
        assert wait_gone(pid, 10)
    assert bench.states(job)[-1] == S.USER_KILLED
    succeeds(bench)


def test_the_agent_killed_in_the_middle_of_a_hook(bench: Bench) -> None:
    """The next agent runs the hook again, and nothing is left of the first run."""

    class Once(ApplicationDefinition):
        site = "local"
        command_template = "cat tries"

        def preprocess(self) -> None:
            import os
            import subprocess
            import time
            from pathlib import Path

            with open("tries", "a") as file:
                print(os.getpid(), file=file)
            if not Path("let-go").exists():
                subprocess.Popen(["setsid", "sleep", "1000"])
                time.sleep(1000)
            self.job.state = "PREPROCESSED"

    Once.sync()
    job = Once.submit("once")
    tries = bench.wait_for_file("once/tries")
    wait_until(lambda: bool(tries.read_text()), 10, "the hook's pid")
    first = psutil.Process(int(tries.read_text()))
    below = [first.pid, *(child.pid for child in first.children())]
    (tries.parent / "let-go").touch()
    agent = next(p for p in first.parents() if "balsam_exec.site" in p.cmdline())
    os.kill(agent.pid, 9)
    job.result(timeout=60)
    assert len(tries.read_text().splitlines()) == 2
    assert all(wait_gone(pid, 10) for pid in below)
    assert bench.states(job) == [S.STAGED_IN, S.PREPROCESSED, S.RUNNING, S.RUN_DONE, S.JOB_FINISHED]


def test_the_agent_told_to_stop_in_the_middle_of_a_hook(bench: Bench) -> None:
    """It ends the hook at once, and the next agent runs it again."""

    class Slow(ApplicationDefinition):
        site = "local"
        command_template = "true"

        def preprocess(self) -> None:
            import os
            import time
            from pathlib import Path

            with open("tries", "a") as file:
                print(os.getpid(), file=file)
            if not Path("let-go").exists():
                time.sleep(1000)
            self.job.state = "PREPROCESSED"

    job = Slow.submit("slow")
    first = psutil.Process(int(bench.wait_for_text("slow/tries")))
    agent = next(p for p in first.parents() if "balsam_exec.site" in p.cmdline())
    (bench.data / "slow/let-go").touch()
    agent.terminate()
    assert wait_gone(agent.pid, 10)
    assert wait_gone(first.pid, 0)
    job.result(timeout=60)
    assert len((bench.data / "slow/tries").read_text().splitlines()) == 2
