"""`balsam up` and `down` as a library: idempotent, and nothing lost whatever is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from balsam_exec.client.config import load_service
from balsam_exec.embedded import Deployment, DeploymentFailed
from balsam_exec.embedded.deployment import stop
from balsam_exec.embedded.layout import Layout, without_password
from balsam_exec.model.errors import Conflict, NotAuthenticated
from balsam_exec.model.sites import SiteSpec
from balsam_exec.model.states import BatchJobState
from tests.embedded.conftest import allocation, kill, process_of, processes_of, wait_other
from tests.support.processes import wait_until


def names(deployment: Deployment) -> set[str]:
    service = deployment.service()
    found = {site.name for site in service.sites().results}
    service.close()
    return found


def add_site(deployment: Deployment, name: str) -> None:
    service = deployment.service()
    service.create_site(SiteSpec(name=name))
    service.close()


def test_up_and_down(home: Path) -> None:
    deployment = Deployment.start(home)
    assert deployment.started
    assert not deployment.temporary
    configured = load_service()
    assert configured.url == deployment.url
    assert configured.default_site == deployment.site == "local"
    assert configured.site(deployment.site_id).path == str(home / "site")
    configured.close()
    assert (home / "credentials.json").stat().st_mode & 0o777 == 0o600
    processes = processes_of(home)
    assert stop(home)
    assert not any(process.alive for process in processes)
    assert not stop(home), "there is nothing to stop any more"


def test_a_second_up_finds_the_first(home: Path) -> None:
    first = Deployment.start(home)
    started = time.monotonic()
    second = Deployment.start(home)
    assert time.monotonic() - started < 1
    assert first.started
    assert not second.started
    assert (second.url, second.site_id) == (first.url, first.site_id)


def test_several_ups_at_once_start_one(home: Path) -> None:
    found: list[Deployment] = []
    threads = [threading.Thread(target=lambda: found.append(Deployment.start(home))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(deployment.started for deployment in found) == [False, False, True]
    assert len({deployment.url for deployment in found}) == 1


def test_down_and_up_keep_the_address_and_the_data(home: Path) -> None:
    first = Deployment.start(home)
    add_site(first, "another")
    token = first.token
    first.stop()
    second = Deployment.start(home)
    assert (second.url, second.site_id, second.token) == (first.url, first.site_id, token)
    assert names(second) == {"local", "another"}


def test_the_service_is_restarted_and_nobody_is_refused(home: Path) -> None:
    deployment = Deployment.start(home)
    add_site(deployment, "another")
    victim = kill(home, "service")
    service = deployment.service()
    assert service.health(deadline=0).status == "ok"  # not one try failed: the socket listens all the time
    service.close()
    wait_other(home, "service", victim)
    assert names(deployment) == {"local", "another"}


def test_the_agent_is_restarted_and_finds_its_allocations(home: Path) -> None:
    deployment = Deployment.start(home)
    job, leader = allocation(deployment)
    victim = kill(home, "agent")
    assert leader.alive
    leader.end(10)  # the next agent has to notice the end of what it did not start
    wait_other(home, "agent", victim)
    service = deployment.service()
    wait_until(lambda: service.batch_job(job.id).state is BatchJobState.FINISHED, 20, "the allocation to be over")
    service.close()


def test_killed_supervisor(home: Path) -> None:
    deployment = Deployment.start(home)
    job, leader = allocation(deployment)
    service, agent = process_of(home, "service"), process_of(home, "agent")
    kill(home, "supervisor")
    assert service.wait(10), "the service ends with its supervisor"
    assert agent.wait(10), "the agent ends with its supervisor"
    assert leader.alive, "the launcher goes on"
    again = Deployment.start(home)
    assert again.started
    assert again.url == deployment.url
    client = again.service()
    assert client.batch_job(job.id).state is BatchJobState.RUNNING
    assert client.sessions(batch_job_id=job.id).results, "the launcher keeps its session"
    client.close()
    again.stop()
    assert not leader.alive


def test_everything_killed_at_once(home: Path) -> None:
    deployment = Deployment.start(home)
    add_site(deployment, "another")
    processes = processes_of(home)
    for process in processes:
        process.send(signal.SIGKILL)
    assert all(process.wait(10) for process in processes)
    again = Deployment.start(home)
    assert again.url == deployment.url
    assert names(again) == {"local", "another"}


def test_down_ends_the_allocations(home: Path) -> None:
    deployment = Deployment.start(home)
    job, leader = allocation(deployment)
    deployment.stop()
    assert not leader.alive
    again = Deployment.start(home).service()
    assert again.batch_job(job.id).state is BatchJobState.FINISHED
    again.close()


def test_down_after_the_supervisor_was_killed_leaves_nothing(home: Path) -> None:
    deployment = Deployment.start(home)
    _, leader = allocation(deployment)
    processes = processes_of(home)
    kill(home, "supervisor")
    assert not stop(home)
    assert not leader.alive
    assert not any(process.alive for process in processes)


def test_a_database_that_cannot_be_used(home: Path) -> None:
    with pytest.raises(DeploymentFailed) as caught:
        Deployment.start(home, database="sqlite:////no/such/directory/balsam.db")
    assert "service ended" in str(caught.value)
    assert "/no/such/directory" in str(caught.value) or "unable to open" in str(caught.value)
    wait_until(lambda: not Layout(home).state_file.exists(), 20, "the supervisor to end")


def test_the_database_is_remembered(home: Path, tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    first = Deployment.start(home, database=database)
    add_site(first, "another")
    with pytest.raises(Conflict, match="balsam down"):
        Deployment.start(home, database=f"sqlite:///{tmp_path / 'third.db'}")
    assert not Deployment.start(home, database=database).started
    first.stop()
    assert names(Deployment.start(home)) == {"local", "another"}


def test_another_database_has_a_site_of_its_own(home: Path, tmp_path: Path) -> None:
    """The site's id in its settings is that of the former service."""
    first = Deployment.start(home)
    add_site(first, "another")
    first.stop()
    second = Deployment.start(home, database=f"sqlite:///{tmp_path / 'elsewhere.db'}")
    assert names(second) == {"local"}


@pytest.mark.parametrize("up_first", [True, False])
def test_postgresql(postgres_url: str, home: Path, up_first: bool) -> None:
    """Also where SQLite was used before."""
    if up_first:
        Deployment.start(home).stop()
    deployment = Deployment.start(home, database=postgres_url)
    assert names(deployment) == {"local"}
    deployment.stop()
    assert Deployment.start(home).url == deployment.url


def test_a_revoked_token_is_replaced(home: Path) -> None:
    first = Deployment.start(home)
    service = first.service()
    for token in service.tokens():
        service.revoke_token(token.id)
    with pytest.raises(NotAuthenticated):
        service.me()
    service.close()
    first.stop()
    again = Deployment.start(home).service()
    assert again.me().username == "local"
    again.close()


def test_a_port_that_is_taken_meanwhile(home: Path) -> None:
    import socket

    first = Deployment.start(home)
    port = int(first.url.rpartition(":")[2])
    first.stop()
    with socket.create_server(("127.0.0.1", port)):
        second = Deployment.start(home)
        assert second.url != first.url
        assert names(second) == {"local"}


def test_it_outlives_the_process_that_started_it(home: Path) -> None:
    script = "from balsam_exec.embedded import Deployment; print(Deployment.start().url)"
    url = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True).stdout
    found = Deployment.start(home)
    assert not found.started
    assert found.url == url.strip()


def test_a_creator_that_is_killed_while_it_starts_harms_nobody(home: Path) -> None:
    script = "from balsam_exec.embedded import Deployment; Deployment.start()"
    creator = subprocess.Popen([sys.executable, "-c", script])
    wait_until(Layout(home).supervisor_lock.exists, 30, "the supervisor to start")
    creator.kill()
    creator.wait(10)
    deployment = Deployment.start(home)  # finds it, once it is ready
    assert not deployment.started
    assert names(deployment) == {"local"}


def test_it_is_small_and_idle(home: Path) -> None:
    Deployment.start(home)
    supervisor, service, agent = (psutil.Process(process.pid) for process in processes_of(home))
    mebibytes = {p.pid: p.memory_info().rss / 2**20 for p in (supervisor, service, agent)}
    assert mebibytes[supervisor.pid] < 25
    assert mebibytes[service.pid] < 120
    assert mebibytes[agent.pid] < 60
    before = [sum(p.cpu_times()[:2]) for p in (supervisor, service, agent)]
    threading.Event().wait(3)
    after = [sum(p.cpu_times()[:2]) for p in (supervisor, service, agent)]
    assert sum(after) - sum(before) < 0.15, "seconds of CPU in 3 seconds"


def test_the_supervisor_imports_little() -> None:
    script = "import balsam_exec.embedded.supervisor, json, sys; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(output.stdout)}
    assert not loaded & {"pydantic", "asyncio", "requests", "urllib3", "yaml", "jinja2"}


@pytest.mark.parametrize(
    ("database", "shown"),
    [
        ("postgresql+psycopg://me:se/c:r@et@host/balsam", "postgresql+psycopg://me:***@host/balsam"),
        ("postgresql://me:secret@host/balsam", "postgresql://me:***@host/balsam"),
        ("postgresql://me@host/balsam", "postgresql://me@host/balsam"),
        ("sqlite:////home/me/balsam.db", "sqlite:////home/me/balsam.db"),
    ],
)
def test_passwords_are_not_shown(database: str, shown: str) -> None:
    assert without_password(database) == shown
