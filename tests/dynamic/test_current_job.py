"""Dynamic workflows: running jobs that look at, add, change and kill jobs (seeds 000, 001, 002, 004)."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from balsam_exec import ApplicationDefinition, Job, current_job
from balsam_exec.client.config import Credentials
from balsam_exec.config import SiteConfig
from balsam_exec.embedded import Deployment
from balsam_exec.launcher.launch import job_environment
from balsam_exec.model.errors import ConfigurationError, DoesNotExist, JobCancelled

pytestmark = pytest.mark.usefixtures("allocation")
BALSAM = shlex.join([sys.executable, "-m", "balsam_exec.cli"])
DEADLINE = 60


class Echo(ApplicationDefinition):
    site = "local"
    command_template = "echo {{ words }}"


class Wait(ApplicationDefinition):
    """Runs until it is killed."""

    site = "local"
    command_template = "sleep 1000"


class Shell(ApplicationDefinition):
    site = "local"
    command_template = "bash -c {{ script }}"


def call(function: Any, workdir: str = "call", **fields: Any) -> Job:
    """A job that runs the function."""
    app = type(f"Call_{function.__name__}", (ApplicationDefinition,), {"site": "local", "run": lambda self: function()})
    job: Job = app.submit(workdir, node_packing_count=4, **fields)
    return job


# --- which job it is


def test_outside_of_a_job_it_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="no job runs here"):
        current_job()
    monkeypatch.setenv("BALSAM_JOB_ID", "seven")
    with pytest.raises(ConfigurationError, match="'seven', which is no id"):
        current_job()


def test_a_job_that_is_not_there_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BALSAM_JOB_ID", str(2**40))
    with pytest.raises(DoesNotExist, match=str(2**40)):
        current_job()


def test_each_call_of_a_warm_worker_is_its_own_job() -> None:
    def who() -> tuple[int, int]:
        import os

        from balsam_exec import current_job

        return os.getpid(), current_job().id

    jobs = [call(who) for _ in range(6)]
    told = [job.result(DEADLINE) for job in jobs]
    assert [job_id for _, job_id in told] == [job.id for job in jobs]
    assert len({pid for pid, _ in told}) < len(jobs)


def test_threads_and_forked_processes_of_a_call_are_in_its_job() -> None:
    def who() -> list[int]:
        import os
        from concurrent.futures import ThreadPoolExecutor

        from balsam_exec import current_job

        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: current_job().id, range(8)))
        reader, writer = os.pipe()
        if (pid := os.fork()) == 0:
            os.write(writer, str(current_job().id).encode())
            os._exit(0)
        os.waitpid(pid, 0)
        return [*found, int(os.read(reader, 100))]

    job = call(who)
    assert job.result(DEADLINE) == [job.id] * 9


def test_an_isolated_call_too() -> None:
    class Isolated(ApplicationDefinition):
        site = "local"
        isolation = "process"

        def run(self) -> int:
            return current_job().id

    jobs = [Isolated.submit("isolated") for _ in range(2)]
    assert [job.result(DEADLINE) for job in jobs] == [job.id for job in jobs]


def test_it_knows_its_parents_children_and_state(tmp_path: Path) -> None:
    def look() -> Any:
        from balsam_exec import current_job

        job = current_job()
        parents = [(one.id, str(one.state)) for one in job.parent_query()]
        return parents, [one.id for one in job.child_query()], str(job.state), job.tags

    os.mkfifo(gate := tmp_path / "gate")
    parents = [
        Echo.submit("p", words="x", node_packing_count=4),
        Shell.submit("p", script=f"cat {gate}", node_packing_count=4),
    ]
    job = call(look, parent_ids=parents, tags={"kind": "middle"})
    child = call(look, parent_ids=[job])
    gate.write_text("the child is there")
    found, children, state, tags = job.result(DEADLINE)
    assert found == [(parent.id, "JOB_FINISHED") for parent in parents]
    assert (children, tags) == ([child.id], {"kind": "middle"})
    assert state in ("RUNNING", "PREPROCESSED")  # the launcher tells a moment later that it has begun
    assert child.result(DEADLINE)[0] == [(job.id, "JOB_FINISHED")]


# --- adding, changing, killing


def test_a_running_app_spawns_children() -> None:
    def spawn() -> list[int]:
        from balsam_exec import Job, current_job

        me = current_job()
        drafts = [
            Job(f"{me.workdir}/{i}", "Echo", parameters={"words": str(i)}, parent_ids=[me], node_packing_count=4)
            for i in range(3)
        ]
        return [job.id for job in Job.objects.bulk_create(drafts)]

    Echo.sync()
    parent = call(spawn, workdir="spawn")
    made = parent.result(DEADLINE)
    children = list(parent.child_query())
    assert [child.id for child in children] == made
    for child in children:
        child.result(DEADLINE)
        assert child.created < parent.last_update < child.last_update


def test_a_running_app_changes_and_kills_others() -> None:
    def steer() -> None:
        from balsam_exec import Job, current_job

        mine = current_job().tags["campaign"]
        others = Job.objects.filter(tags={"campaign": mine, "role": "candidate"})
        for job in others:
            job.data["looser"] = True
        Job.objects.bulk_update(others)
        others.kill()

    campaign = f"steer-{os.getpid()}"
    candidates = [
        Wait.submit("candidate", tags={"campaign": campaign, "role": "candidate"}, node_packing_count=4)
        for _ in range(2)
    ]
    call(steer, tags={"campaign": campaign}).result(DEADLINE)
    for job in candidates:
        with pytest.raises(JobCancelled):
            job.result(DEADLINE)
        assert job.data == {"looser": True}


def test_a_hook_kills_the_siblings_of_its_job_and_goes_on_with_another() -> None:
    class Racer(ApplicationDefinition):
        """The first to finish ends the others."""

        site = "local"
        command_template = "sleep {{ seconds }}"

        def postprocess(self) -> None:
            from balsam_exec import Job, current_job
            from balsam_exec.config import SiteConfig

            me = current_job()
            Job.objects.filter(tags={"race": me.tags["race"]}).exclude(id=me.id).kill()
            prize = Job("prize", "Echo", SiteConfig().site_id, parameters={"words": "won"}, parent_ids=[me])
            prize.save()
            here = SiteConfig().site_id == me.site_id
            self.job.data = {"is_me": me.id == self.job.id, "here": here, "prize": prize.id}
            self.job.state = "POSTPROCESSED"

    Echo.sync()
    tags = {"race": str(os.getpid())}
    slow = [Racer.submit("race", seconds=1000, tags=tags, node_packing_count=4) for _ in range(2)]
    first = Racer.submit("race", seconds=0, tags=tags, node_packing_count=4)
    first.result(DEADLINE)
    for job in slow:
        with pytest.raises(JobCancelled):
            job.result(DEADLINE)
    first.refresh_from_db()
    assert (first.data["is_me"], first.data["here"]) == (True, True)
    Job.objects.get(id=first.data["prize"]).result(DEADLINE)


def test_a_shell_command_creates_jobs_with_the_command_line(deployment: Deployment) -> None:
    Echo.sync()
    script = f"{BALSAM} job create --app Echo --workdir made/by-shell --param words=hello --tag by=$BALSAM_JOB_ID"
    job = Shell.submit("shell", script=script)
    job.result(DEADLINE)
    made = Job.objects.get(tags={"by": str(job.id)})
    made.result(DEADLINE)
    assert (made.resolve_workdir(deployment.home / "site/data") / "job.out").read_text() == "hello\n"


def test_the_command_line_is_found_by_jobs_wherever_it_is_installed(tmp_path: Path) -> None:
    credentials = Credentials(url="http://here", token=SecretStr("secret"), site="elsewhere")
    given = job_environment({"PATH": "/usr/bin:/bin", "MINE": "1"}, credentials, 7)
    assert given == {
        "PATH": f"/usr/bin:/bin:{Path(sys.executable).parent}",
        "MINE": "1",
        "BALSAM_URL": "http://here",
        "BALSAM_TOKEN": "secret",
        "BALSAM_SITE": "7",
    }
    (tmp_path / "balsam").touch(mode=0o755)
    assert job_environment({"PATH": f"/bin:{tmp_path}"}, credentials, 7)["PATH"] == f"/bin:{tmp_path}"


def test_a_program_of_a_command_knows_its_job(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from balsam_exec import current_job\njob = current_job()\njob.data['seen'] = job.id\njob.save()\n"
    )
    job = Shell.submit("program", script=shlex.join([sys.executable, str(program)]))
    job.result(DEADLINE)
    job.refresh_from_db()
    assert job.data == {"seen": job.id}


def test_the_client_of_the_seed() -> None:
    def look() -> tuple[int, int]:
        from balsam_exec.config import SiteConfig

        client = SiteConfig().client
        Job = client.Job
        return Job.objects.filter(state="RUNNING").count(), SiteConfig().site_id

    job = call(look)
    count, site_id = job.result(DEADLINE)
    assert count >= 0
    assert site_id == job.site_id == SiteConfig().site_id


def test_a_global_job_class_works_in_an_app() -> None:
    """What seed 001 warns of."""

    class Lister(ApplicationDefinition):
        site = "local"

        def run(self) -> list[int]:
            return [job.id for job in Job.objects.filter(tags={"lister": "yes"})]

    wanted = Echo.submit("w", words="x", tags={"lister": "yes"})
    assert Lister.submit("lister").result(DEADLINE) == [wanted.id]


def test_every_rank_of_a_job_is_in_it() -> None:
    class Ranks(ApplicationDefinition):
        site = "local"

        def run(self) -> list[int]:
            from mpi4py import MPI

            from balsam_exec import current_job

            found: list[int] = MPI.COMM_WORLD.gather(current_job().id)
            return found

    job = Ranks.submit("ranks", ranks_per_node=2)
    assert job.result(DEADLINE) == [job.id] * 2
