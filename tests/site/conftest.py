"""Agents as processes of their own, on a real service."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import pytest

from balsam_exec.client.service import Service
from balsam_exec.model.batch_jobs import BatchJobRecord, BatchJobSpec
from balsam_exec.model.states import BatchJobState
from balsam_exec.platform.settings import SiteDirectory
from balsam_exec.site.registration import init_site
from tests.support.processes import wait_until
from tests.support.services import LiveService
from tests.support.slurm import SlurmCluster

#: A site whose allocations run this instead of a launcher.
STAND_IN = "#!/bin/bash\necho allocation {{ job.id }}\n{{ job.optional_params.get('script', 'exec sleep 300') }}\n"


class RunningAgent:
    """`python -m balsam_exec.site`; ended with its standard input."""

    def __init__(self, site: SiteDirectory, live: LiveService) -> None:
        self._log = site.log / "agent.log"
        reader, writer = os.pipe()
        command = [sys.executable, "-m", "balsam_exec.site", str(site.path), "--until-eof", "--ready-fd", str(writer)]
        environ = {**os.environ, "BALSAM_URL": live.url, "BALSAM_TOKEN": live.token}
        with self._log.open("ab") as log:
            self.popen = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, pass_fds=[writer], env=environ
            )
        os.close(writer)
        with os.fdopen(reader) as ready:
            assert select.select([ready], [], [], 30)[0], f"not ready:\n{self.log}"
            line = ready.readline()
        self.ready = json.loads(line) if line else None

    @property
    def log(self) -> str:
        return self._log.read_text()

    def tell(self, word: str) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(f"{word}\n".encode())
        self.popen.stdin.flush()

    def kill(self) -> None:
        self.popen.kill()
        self.close()

    def close(self) -> int:
        assert self.popen.stdin is not None
        self.popen.stdin.close()
        return self.popen.wait(60)


class SiteBench:
    """A registered site on a live service, its agents, and what one asks of them."""

    def __init__(self, live: LiveService, directory: Path) -> None:
        self.live = live
        self.record = init_site(self.service, directory, "bench")
        self.site = SiteDirectory(directory)
        self.site.job_template.write_text(STAND_IN)
        settings = self.site.settings_file.read_text()
        self.site.settings_file.write_text(settings + "\ncancel_grace_sec: 1\n")
        self._agents: list[RunningAgent] = []

    @property
    def service(self) -> Service:
        return self.live.service

    def forget_client(self) -> None:
        """The service has another token for us."""
        self.live.service.close()
        del self.live.service

    def agent(self) -> RunningAgent:
        agent = RunningAgent(self.site, self.live)
        self._agents.append(agent)
        return agent

    def batch_job(self, script: str | None = None) -> BatchJobRecord:
        params = {} if script is None else {"script": script}
        spec = BatchJobSpec(site_id=self.record.id, num_nodes=1, wall_time_min=5, optional_params=params)
        return self.service.create_batch_job(spec)

    def wait_state(self, job: BatchJobRecord, state: BatchJobState, timeout: float = 20) -> BatchJobRecord:
        wait_until(lambda: self.service.batch_job(job.id).state is state, timeout, f"batch job {job.id} to be {state}")
        return self.service.batch_job(job.id)

    def logged(self, job: BatchJobRecord) -> list[str]:
        return [
            line for log in self.site.log.glob(f"batch-job-{job.id}-*.log") for line in log.read_text().splitlines()
        ]

    def close(self) -> None:
        for agent in self._agents:
            if agent.popen.poll() is None:
                agent.tell("drain")
            agent.close()


def start_agent(bench: SiteBench, **environ: str) -> subprocess.CompletedProcess[str]:
    """An agent that is expected to end at once."""
    command = [sys.executable, "-m", "balsam_exec.site", str(bench.site.path)]
    known = {"BALSAM_URL": bench.live.url, "BALSAM_TOKEN": bench.live.token}
    return subprocess.run(
        command, env={**os.environ, **known, **environ}, capture_output=True, text=True, timeout=30, check=False
    )


B = TypeVar("B", bound=SiteBench)


@pytest.fixture
def at_slurm(
    slurm: SlurmCluster, start_service: Callable[[str], LiveService], sqlite_url: str, tmp_path: Path
) -> Iterator[Callable[..., Any]]:
    """`at_slurm(kind, **options)` makes a bench of that kind, of a site on a real Slurm."""
    with ExitStack() as stack:

        def make(kind: Callable[..., B], **options: Any) -> B:
            bench = kind(start_service(sqlite_url), tmp_path / "site", slurm, **options)
            stack.callback(bench.close)
            return bench

        yield make


@pytest.fixture
def site_bench(start_service: Callable[[str], LiveService], sqlite_url: str, tmp_path: Path) -> Iterator[SiteBench]:
    bench = SiteBench(start_service(sqlite_url), tmp_path / "site")
    yield bench
    if not any(agent.popen.poll() is None for agent in bench._agents):
        bench.agent()  # to end what runs
    bench.close()
