"""What hooks may do, and what they find: through the front door of a real deployment."""

from __future__ import annotations

import pytest

from balsam_exec import current_job
from balsam_exec.api import ApplicationDefinition, Job
from balsam_exec.model.errors import JobCancelled, JobFailed
from balsam_exec.model.states import JobState
from tests.hooks.conftest import Bench

pytestmark = pytest.mark.timeout(120)
S = JobState


def test_output_of_all_kinds_is_in_the_log(bench: Bench) -> None:
    class Loud(ApplicationDefinition):
        site = "local"
        command_template = "echo the command"

        def preprocess(self) -> None:
            import ctypes
            import os
            import subprocess
            import sys

            print("from print")
            print("to stderr", file=sys.stderr)
            os.write(1, b"to the descriptor\n")
            ctypes.CDLL(None).printf(b"from C\n")
            subprocess.run(["echo", "from a subprocess"], check=True)
            self.job.state = "PREPROCESSED"

        def postprocess(self) -> None:
            print("and afterwards in", __import__("os").getcwd())
            self.job.state = "POSTPROCESSED"

    job = Loud.submit("loud/one")
    job.result(timeout=60)
    said = bench.log(job).splitlines()
    assert set(said[:5]) == {"from print", "to stderr", "to the descriptor", "from C", "from a subprocess"}
    assert said[5:] == [f"and afterwards in {bench.data / 'loud/one'}"]
    assert bench.output(job) == "the command\n"


def test_surroundings(bench: Bench) -> None:
    """What a hook does to its process the next one does not find."""

    class Curious(ApplicationDefinition):
        site = "local"
        command_template = "true"
        environment_variables = {"FLAVOUR": "vanilla"}

        def preprocess(self) -> None:
            import os

            seen = {name: os.environ.get(name) for name in ("FLAVOUR", "BALSAM_JOB_ID", "LEFT_BEHIND", "HOME")}
            self.job.data = {"seen": seen, "cwd": os.getcwd(), "pid": os.getpid(), "mine": current_job().id}
            os.environ["LEFT_BEHIND"] = "yes"
            os.environ.pop("HOME")
            os.chdir("/")
            os.umask(0o022)
            self.job.state = "PREPROCESSED"

    jobs = []
    for number in range(4):
        jobs.append(Curious.submit(f"curious/{number}"))
        jobs[-1].result(timeout=60)
    for job in jobs:
        assert job.data["seen"]["FLAVOUR"] == "vanilla"
        assert job.data["seen"]["BALSAM_JOB_ID"] == str(job.id)
        assert job.data["seen"]["LEFT_BEHIND"] is None
        assert job.data["seen"]["HOME"]
        assert job.data["cwd"] == str(bench.data / job.workdir)
        assert job.data["mine"] == job.id
    # On a busy machine the next job may come before its process has become free again, and get another.
    assert len({job.data["pid"] for job in jobs}) < len(jobs), "no process was kept warm"


def test_a_fresh_process_for_each_where_the_app_wants_it(bench: Bench) -> None:
    class Alone(ApplicationDefinition):
        site = "local"
        command_template = "true"
        isolation = "process"

        def preprocess(self) -> None:
            import os

            self.job.data["pid"] = os.getpid()
            self.job.state = "PREPROCESSED"

    jobs = [Alone.submit(f"alone/{number}", node_packing_count=4) for number in range(3)]
    Job.objects.wait(jobs, timeout=60)
    assert len({job.data["pid"] for job in jobs}) == 3


def test_all_fields_that_a_hook_may_change(bench: Bench) -> None:
    class Changing(ApplicationDefinition):
        site = "local"
        command_template = "echo {{ word }}"

        def preprocess(self) -> None:
            self.job.parameters = {"word": "new"}
            self.job.workdir = "changing/elsewhere"
            self.job.tags["stage"] = "two"
            self.job.data["deep"]["list"].append(3)
            self.job.node_packing_count = 2
            self.job.state_data = {"note": "all of it"}
            self.job.state = "PREPROCESSED"

    job = Changing.submit("changing/here", word="old", tags={"kind": "x"}, data={"deep": {"list": [1, 2]}})
    job.result(timeout=60)
    job.refresh_from_db()
    assert (bench.data / "changing/elsewhere/job.out").read_text() == "new\n"
    assert job.tags == {"kind": "x", "stage": "two"}
    assert job.data == {"deep": {"list": [1, 2, 3]}}
    assert job.node_packing_count == 2
    assert bench.events(job)[1] == (S.PREPROCESSED, {"note": "all of it"})


def test_a_python_app_and_its_parameters(bench: Bench) -> None:
    class Doubling(ApplicationDefinition):
        site = "local"

        def run(self, x: int) -> int:
            return 2 * x

        def preprocess(self) -> None:
            self.job.parameters["x"] += 1
            self.job.state = "PREPROCESSED"

        def postprocess(self) -> None:
            self.job.data["result"] = self.job.result_nowait() if self.job.done() else None
            self.job.state = "POSTPROCESSED"

    job = Doubling.submit("doubling", x=20)
    assert job.result(timeout=60) == 42
    assert job.data == {"result": None}


def test_parameters_by_the_names_that_run_has_for_them(bench: Bench) -> None:
    class Spread(ApplicationDefinition):
        site = "local"

        def run(self, start: int, *more: int, scale: int = 1) -> int:
            return (start + sum(more)) * scale

        def preprocess(self) -> None:
            assert self.job.parameters == {"start": 1, "more": [2, 3], "scale": 2}
            self.job.parameters["more"].append(4)
            self.job.state = "PREPROCESSED"

    job = Spread.submit("spread", start=1, more=[2, 3], scale=2)
    assert job.result(timeout=60) == 20


def test_a_hook_creates_changes_and_kills_other_jobs(bench: Bench) -> None:
    class Worker(ApplicationDefinition):
        site = "local"
        command_template = "echo {{ word }}; {{ then }}"
        parameters = {"then": {"required": False, "default": "true"}}

    class Leader(ApplicationDefinition):
        site = "local"
        command_template = "true"

        def postprocess(self) -> None:
            from balsam_exec.api import Job

            mine = {"leader": str(self.job.id)}
            made = [
                Job(f"{self.job.workdir}/{n}", "Worker", parameters={"word": f"w{n}"}, tags=mine, parent_ids=[self.job])
                for n in range(3)
            ]
            Job.objects.bulk_create(made)
            Job.objects.filter(id=made[0].id).update(tags={**mine, "changed": "yes"})
            Job.objects.filter(id=made[1].id).kill()
            Job.objects.get(tags={"victim": str(self.job.id)}).kill()
            self.job.state = "POSTPROCESSED"

    Worker.sync()
    Leader.sync()
    leader = Leader.submit("leader", node_packing_count=2)
    victim = Worker.submit(
        "victim", word="alive", then="sleep 1000", tags={"victim": str(leader.id)}, parent_ids=[leader.id]
    )
    leader.result(timeout=60)
    made = list(Job.objects.filter(tags={"leader": str(leader.id)}))
    assert len(made) == 3
    Job.objects.wait([*made, victim], timeout=60)
    assert [job.state for job in made] == [S.JOB_FINISHED, S.USER_KILLED, S.JOB_FINISHED]
    assert made[0].tags["changed"] == "yes"
    assert bench.output(made[2]) == "w2\n"
    with pytest.raises(JobCancelled):
        victim.result(timeout=60)


def test_a_hook_that_saves_its_job_itself(bench: Bench) -> None:
    class Impatient(ApplicationDefinition):
        site = "local"
        command_template = "true"

        def preprocess(self) -> None:
            self.job.data["first"] = 1
            self.job.save()
            self.job.state = "PREPROCESSED"
            self.job.save()
            self.job.data["second"] = 2

    job = Impatient.submit("impatient")
    job.result(timeout=60)
    job.refresh_from_db()
    assert job.data == {"first": 1, "second": 2}
    assert bench.states(job) == [S.STAGED_IN, S.PREPROCESSED, S.RUNNING, S.RUN_DONE, S.JOB_FINISHED]


def test_a_run_that_was_done_and_failed_by_its_hook(bench: Bench) -> None:
    """Whoever waits gets the failure, not the value."""

    class Wrong(ApplicationDefinition):
        site = "local"

        def run(self) -> int:
            return 41

        def postprocess(self) -> None:
            self.job.state = "FAILED"
            self.job.state_data = {"reason": "41 is not 42"}

    job = Wrong.submit("wrong")
    with pytest.raises(JobFailed, match="reason: 41 is not 42"):
        job.result(timeout=60)


def test_a_failure_of_handle_error_leaves_that_of_the_run(bench: Bench) -> None:
    class Twice(ApplicationDefinition):
        site = "local"
        command_template = "echo the reason; exit 5"

        def handle_error(self) -> None:
            raise RuntimeError("and this too")

    job = Twice.submit("twice")
    with pytest.raises(JobFailed, match="exit code 5\nthe reason"):
        job.result(timeout=60)
    assert bench.failure(job)["error"] == "RuntimeError: and this too"


def test_another_version_of_the_app_from_the_next_job_on(bench: Bench) -> None:
    def version(number: int) -> type[ApplicationDefinition]:
        class Changing(ApplicationDefinition):
            site = "local"
            command_template = "true"

            def preprocess(self) -> None:
                self.job.data["version"] = number
                self.job.state = "PREPROCESSED"

        return Changing

    jobs: list[tuple[int, Job]] = []
    for number in range(4):
        app = version(number)
        app.sync()
        jobs += [(number, app.submit(f"versions/{number}/{n}", node_packing_count=4)) for n in range(5)]
    Job.objects.wait([job for _, job in jobs], timeout=60)
    for number, job in jobs:
        assert job.data["version"] >= number
        assert job.state is S.JOB_FINISHED
    assert jobs[-1][1].data["version"] == 3


def test_two_hundred_at_once(bench: Bench) -> None:
    class Many(ApplicationDefinition):
        site = "local"
        command_template = "true"

        def preprocess(self) -> None:
            self.job.data["pre"] = True
            self.job.state = "PREPROCESSED"

        def postprocess(self) -> None:
            self.job.data = {**self.job.data, "post": True}
            self.job.state = "POSTPROCESSED"

    jobs = Job.objects.bulk_create(Many.submit(f"many/{n}", node_packing_count=8, save=False) for n in range(200))
    done, waiting = Job.objects.wait(jobs, timeout=90)
    assert not waiting
    assert {job.state for job in done} == {S.JOB_FINISHED}
    assert all(job.data == {"pre": True, "post": True} for job in done)
    for number in (0, 199):
        expected = [S.STAGED_IN, S.PREPROCESSED, S.RUNNING, S.RUN_DONE, S.POSTPROCESSED, S.JOB_FINISHED]
        assert bench.states(jobs[number]) == expected
