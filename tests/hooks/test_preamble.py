"""`shell_preamble` (seed 001 "The Shell Preamble"): what is done in the shell that starts a job."""

from __future__ import annotations

from typing import Any

import pytest

from balsam_exec.api import ApplicationDefinition, Job
from balsam_exec.model.errors import InvalidRequest, JobCancelled, JobFailed, WorkerDied
from balsam_exec.model.states import JobState
from tests.hooks.conftest import Bench
from tests.support.processes import wait_gone

pytestmark = pytest.mark.timeout(120)
S = JobState


def test_as_printed_in_the_seed(bench: Bench) -> None:
    class MySimulation(ApplicationDefinition):
        site = "local"
        command_template = "echo foo is $FOO in {{ where }}; module-was-loaded"

        def shell_preamble(self):  # type: ignore[no-untyped-def]
            return f"""
            module() {{ mkdir -p bin; echo "echo $2 was loaded" > bin/module-was-loaded; chmod +x bin/*; }}
            module load conda/tensorflow
            export PATH=$PWD/bin:$PATH
            export FOO={self.job.data["env_vars"]["foo"]}
            """

    jobs = [
        MySimulation.submit(f"seed/{n}", where="a job", data={"env_vars": {"foo": n}}, node_packing_count=4)
        for n in range(3)
    ]
    for number, job in enumerate(jobs):
        job.result(timeout=60)
        assert bench.output(job) == f"foo is {number} in a job\nconda/tensorflow was loaded\n"
        assert bench.states(job) == [S.PREPROCESSED, S.RUNNING, S.RUN_DONE, S.JOB_FINISHED]


def test_a_list_and_what_the_job_knows_of_itself(bench: Bench) -> None:
    class Listed(ApplicationDefinition):
        site = "local"
        command_template = "echo $A $B $BALSAM_JOB_ID {{ word }}"

        def shell_preamble(self) -> list[str]:
            print("asked in", __import__("os").getcwd())
            job = self.job
            return [f"export A={job.tags['kind']}-{job.parameters['word']}", f"export B={len(job.parent_ids)}"]

    first = Listed.submit("listed/first", word="x", tags={"kind": "a"})
    second = Listed.submit("listed/second", word="y z", tags={"kind": "b"}, parent_ids=[first], save=False)
    second.parameters["word"] = "y"
    second.save()
    second.result(timeout=60)
    assert bench.output(first) == f"a-x 0 {first.id} x\n"
    assert bench.output(second) == f"b-y 1 {second.id} y\n"
    assert bench.log(second) == f"asked in {bench.data / 'listed/second'}\n"


@pytest.mark.parametrize("given", ["export WORD=plain\nulimit -n 99", ["export WORD=plain", "ulimit -n 99"]])
def test_plain_text_and_lists(bench: Bench, given: Any) -> None:
    class Constant(ApplicationDefinition):
        site = "local"
        command_template = "echo $WORD; ulimit -n"
        shell_preamble = given

    job = Constant.submit("constant")
    job.result(timeout=60)
    assert bench.output(job).endswith("plain\n99\n")


def test_a_python_app(bench: Bench) -> None:
    class Asking(ApplicationDefinition):
        site = "local"

        def run(self, name: str) -> tuple[str | None, int]:
            import os

            return os.environ.get(name), os.getpid()

        def shell_preamble(self) -> str:
            return f"export FLAVOUR={self.job.data['flavour']}"

    def ask(flavour: str) -> tuple[str | None, int]:
        answer: tuple[str | None, int] = Asking.submit(
            "asking", name="FLAVOUR", data={"flavour": flavour}, node_packing_count=4
        ).result(timeout=60)
        return answer

    first, again, other = ask("vanilla"), ask("vanilla"), ask("mint")
    assert (first[0], again[0], other[0]) == ("vanilla", "vanilla", "mint")
    assert first[1] == again[1] != other[1], "workers are kept warm for equal preambles"


@pytest.mark.parametrize("where", ["beside", "preamble"])
def test_several_ranks(bench: Bench, where: str) -> None:
    """The MPI launcher is the one on the PATH that the preamble leaves."""

    class Ranks(ApplicationDefinition):
        site = "local"
        command_template = "echo rank of $KIND"

        def shell_preamble(self) -> str:
            import os

            if self.job.data["where"] == "preamble":
                os.makedirs("bin", exist_ok=True)
                with open("bin/mpiexec", "w") as file:
                    file.write('#!/bin/bash\necho my mpiexec "$1" "$2"; shift 2; exec "$@"\n')
                os.chmod("bin/mpiexec", 0o755)
            return "export KIND=mpi PATH=$PWD/bin:$PATH"

    job = Ranks.submit(f"ranks/{where}", ranks_per_node=2, data={"where": where})
    job.result(timeout=60)
    said = {"beside": "rank of mpi\nrank of mpi\n", "preamble": "my mpiexec -n 2\nrank of mpi\n"}
    assert bench.output(job) == said[where]


class Failing(ApplicationDefinition):
    site = "local"
    command_template = "echo ran >> ran"

    def shell_preamble(self) -> Any:
        import os
        import time

        what = self.job.data["what"]
        if what == "raise":
            raise KeyError("env_vars")
        if what == "die":
            os._exit(4)
        if what == "number":
            return 42
        if what == "nul":
            return ["export A=1", "export B=" + chr(0)]
        if what == "hang":
            with open("pid", "w") as file:
                file.write(str(os.getpid()))
            time.sleep(1000)
        return "exit 9"


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("raise", "shell_preamble: KeyError: 'env_vars'\nTraceback"),
        ("die", "shell_preamble: the process that ran it died: exit code 4"),
        ("number", "TypeError: shell_preamble gives text or a list of lines, not 42"),
        ("nul", "ValueError: shell_preamble gives text that no shell can be given"),
        ("exit", "exit code 9"),
    ],
)
def test_failing(bench: Bench, what: str, error: str) -> None:
    job = Failing.submit(f"failing/{what}", data={"what": what}, node_packing_count=4)
    with pytest.raises(JobFailed) as caught:
        job.result(timeout=60)
    assert error in str(caught.value)
    assert not (bench.data / job.workdir / "ran").exists()
    assert bench.states(job)[-2:] == [S.RUN_ERROR, S.FAILED]


def test_a_shell_that_exits_instead_of_starting_a_python_app(bench: Bench) -> None:
    class Never(ApplicationDefinition):
        site = "local"
        shell_preamble = "exit 3"

        def run(self) -> None: ...

    with pytest.raises(WorkerDied, match="exit code 3"):
        Never.submit("never").result(timeout=60)


def test_killed_while_it_is_asked(bench: Bench) -> None:
    job = Failing.submit("failing/hang", data={"what": "hang"}, node_packing_count=4)
    pid = int(bench.wait_for_text("failing/hang/pid"))
    job.kill()
    with pytest.raises(JobCancelled):
        job.result(timeout=60)
    assert wait_gone(pid, 5)
    assert not (bench.data / "failing/hang/ran").exists()


def test_what_can_be_none() -> None:
    with pytest.raises(InvalidRequest, match=r"Odd\.shell_preamble must be a method, text or a list of lines, not 3"):

        class Odd(ApplicationDefinition):
            command_template = "true"
            shell_preamble = 3

    with pytest.raises(InvalidRequest, match=r"Worse\.preprocess must be a method, not 'true'"):

        class Worse(ApplicationDefinition):
            command_template = "true"
            preprocess = "true"


def test_jobs_of_other_apps_do_not_wait_for_it(bench: Bench) -> None:
    class Quick(ApplicationDefinition):
        site = "local"
        command_template = "true"

    slow = Failing.submit("failing/slow", data={"what": "hang"}, node_packing_count=4)
    bench.wait_for_text("failing/slow/pid")
    Quick.submit("quick", node_packing_count=4).result(timeout=60)
    slow.kill()
    Job.objects.wait([slow], timeout=60)
    assert slow.state is S.USER_KILLED
