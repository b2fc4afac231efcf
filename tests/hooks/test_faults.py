"""Parts of a deployment killed while hooks run: every job ends once, and right."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from balsam_exec.api import ApplicationDefinition, Job
from balsam_exec.embedded import Deployment
from balsam_exec.model.states import TERMINAL, JobState
from tests.faults.test_kill9 import part
from tests.hooks.conftest import Bench

pytestmark = pytest.mark.timeout(240)
S = JobState


@pytest.fixture
def bench(balsam_home: object) -> Iterator[Bench]:
    with Deployment.start(temporary=False) as deployment:
        bench = Bench(deployment)
        yield bench
        bench.close()


@pytest.mark.parametrize("name", ["service", "agent"])
def test_killed_in_the_middle_of_many_hooks(bench: Bench, name: str) -> None:
    class Counted(ApplicationDefinition):
        site = "local"
        command_template = "true"

        def preprocess(self) -> None:
            with open("pre", "a") as file:
                print(self.job.state, file=file)
            self.job.state = "PREPROCESSED"

        def postprocess(self) -> None:
            self.job.data["done"] = True
            self.job.state = "POSTPROCESSED"

    jobs = Job.objects.bulk_create(
        Counted.submit(f"counted/{number}", node_packing_count=8, save=False) for number in range(300)
    )
    for count, job in enumerate(Job.objects.as_completed(jobs, timeout=120), start=1):
        assert job.state is S.JOB_FINISHED
        if count == 50:
            os.kill(part(name)(bench.deployment), signal.SIGKILL)
    assert Job.objects.filter(id=[job.id for job in jobs], state=S.JOB_FINISHED).count() == 300
    for job in jobs[::10]:
        assert job.data == {"done": True}
        assert len([state for state in bench.states(job) if state in TERMINAL]) == 1
        assert bench.states(job)[:2] == [S.STAGED_IN, S.PREPROCESSED]
