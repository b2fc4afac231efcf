"""What a launcher says of itself when it begins, so that people can be told why it does not take a job."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from balsam_exec.model.explain import Cause
from balsam_exec.model.jobs import JobSpec
from tests.launcher.test_process import allocation_of
from tests.support.processes import wait_until
from tests.support.services import LiveService


def test_a_job_that_no_launcher_takes_is_explained(
    start_service: Callable[[str], LiveService], sqlite_url: str, tmp_path: Path
) -> None:
    with allocation_of(start_service(sqlite_url), tmp_path / "site") as allocation:
        service, app = allocation.service, allocation.command("true")
        [job] = service.create_jobs([JobSpec(app_id=app.id, workdir="w", gpus_per_rank=2)])
        allocation.launch()
        wait_until(lambda: bool(service.sessions().results), 30, "the launcher")
        [reason] = service.explain_job(job.id).reasons
        assert reason.code == Cause.TOO_FEW_GPUS
        who = f"the running allocation (batch job {allocation.batch_job})"
        assert reason.text == f"it needs 2 GPUs on a node, and {who} has 0"
