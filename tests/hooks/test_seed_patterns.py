"""Each hook that seed 001 "Job Lifecycle Hooks" prints, through the front door of a real deployment."""

from __future__ import annotations

import pytest

from balsam_exec.api import ApplicationDefinition, Job
from balsam_exec.model.errors import JobFailed, JobTimeout
from balsam_exec.model.states import JobState
from tests.hooks.conftest import Bench

pytestmark = pytest.mark.timeout(120)
S = JobState


def test_preprocess_reads_data_and_decides(bench: Bench) -> None:
    class MySimulation(ApplicationDefinition):
        site = "local"
        command_template = "cat input.xyz"

        def generate_input(self, coordinates):  # type: ignore[no-untyped-def]
            if not coordinates:
                return False
            with open("input.xyz", "w") as fp:
                fp.write(" ".join(map(str, coordinates)))
            return True

        def preprocess(self):  # type: ignore[no-untyped-def]
            # Can read anything from self.job.data
            coordinates = self.job.data["input_coords"]

            # Run arbitrary methods defined on the class:
            success = self.generate_input(coordinates)

            # Advance the job state
            if success:
                # Ready to run
                self.job.state = "PREPROCESSED"
            else:
                # Fail the job and attach searchable data
                # to the failure event
                self.job.state = "FAILED"
                self.job.state_data = {"error": "Preproc got bad coordinates"}

    good = MySimulation.submit("preprocess/good", data={"input_coords": [1, 2]})
    bad = MySimulation.submit("preprocess/bad", data={"input_coords": []})
    good.result(timeout=60)
    assert bench.output(good) == "1 2"
    assert bench.states(good) == [S.STAGED_IN, S.PREPROCESSED, S.RUNNING, S.RUN_DONE, S.JOB_FINISHED]
    with pytest.raises(JobFailed, match="Preproc got bad coordinates"):
        bad.result(timeout=60)
    assert bench.events(bad) == [(S.STAGED_IN, {}), (S.FAILED, {"error": "Preproc got bad coordinates"})]


def test_postprocess_parses_and_runs_again_until_it_converges(bench: Bench) -> None:
    class MySimulation(ApplicationDefinition):
        site = "local"
        command_template = "cat step >> out.hdf"

        def preprocess(self):  # type: ignore[no-untyped-def]
            with open("step", "w") as fp:
                fp.write("1\n")
            self.job.state = "PREPROCESSED"

        def parse_results(self, fp):  # type: ignore[no-untyped-def]
            return [int(line) for line in fp]

        def is_converged(self, results):  # type: ignore[no-untyped-def]
            return results[-1] == 3

        def fix_input(self):  # type: ignore[no-untyped-def]
            with open("step") as fp:
                step = int(fp.read()) + 1
            with open("step", "w") as fp:
                fp.write(f"{step}\n")

        def postprocess(self):  # type: ignore[no-untyped-def]
            with open("out.hdf") as fp:
                # Call your own result parser:
                results = self.parse_results(fp)

            if self.is_converged(results):
                self.job.data = {**self.job.data, "results": results}
                self.job.state = "POSTPROCESSED"
            else:
                # Call your own input file fixer:
                self.fix_input()
                self.job.state = "RESTART_READY"

    job = MySimulation.submit("postprocess")
    job.result(timeout=60)
    job.refresh_from_db()
    assert job.data == {"results": [1, 2, 3]}
    assert bench.states(job).count(S.RESTART_READY) == 2
    assert job.num_runs == 3


def test_handle_timeout_fails_the_job_and_makes_another(bench: Bench) -> None:
    class MySimulation(ApplicationDefinition):
        site = "local"
        command_template = "echo started; sleep {{ seconds }}"

        def next_run_kwargs(self):  # type: ignore[no-untyped-def]
            return {
                "workdir": self.job.workdir + "/faster",
                "app_id": self.job.app_id,
                "parameters": {"seconds": 0},
                "tags": {"after": str(self.job.id)},
            }

        def handle_timeout(self):  # type: ignore[no-untyped-def]
            # Sorry, not retrying slow runs:
            self.job.state = "FAILED"
            self.job.state_data = {"reason": "Job Timed out"}

            # Create another, faster run:
            new_job_params = self.next_run_kwargs()
            Job.objects.create(**new_job_params)

    MySimulation.sync()
    slow = MySimulation.submit("timeout", seconds=1000)
    bench.wait_for_file("timeout/job.out")
    bench.end_allocation()
    bench.start_allocation()
    with pytest.raises(JobTimeout, match="reason: Job Timed out"):
        slow.result(timeout=60)
    faster = Job.objects.get(tags={"after": str(slow.id)})
    faster.result(timeout=60)
    assert faster.workdir == "timeout/faster"


def test_handle_error_retries_three_times(bench: Bench) -> None:
    class MySimulation(ApplicationDefinition):
        site = "local"
        command_template = "cat attempts; exit 7"

        def fix_inputs(self):  # type: ignore[no-untyped-def]
            with open("attempts", "a") as fp:
                fp.write("again\n")

        def handle_error(self):  # type: ignore[no-untyped-def]
            dat = self.job.data
            retry_count = dat.get("retry_count", 0)

            if retry_count <= 3:
                self.fix_inputs()
                self.job.state = "RESTART_READY"
                self.job.data = {**dat, "retry_count": retry_count + 1}
            else:
                self.job.state = "FAILED"
                self.job.state_data = {"reason": "Exceeded maximum retries"}

    job = MySimulation.submit("error")
    with pytest.raises(JobFailed, match="exit code 7"):
        job.result(timeout=60)
    job.refresh_from_db()
    assert job.data == {"retry_count": 4}
    assert bench.states(job).count(S.RUNNING) == 5
    assert bench.events(job)[-1] == (S.FAILED, {"reason": "Exceeded maximum retries"})
