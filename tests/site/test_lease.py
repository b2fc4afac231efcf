"""One agent at a time serves a site."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

import pytest

from balsam_exec.model.base import now
from balsam_exec.model.errors import BalsamError, ConfigurationError, Conflict, NotFound
from balsam_exec.model.sites import AgentProcess, SitePatch
from balsam_exec.platform.processes import Process
from balsam_exec.platform.settings import SiteDirectory
from balsam_exec.site import heartbeat
from balsam_exec.site.agent import Agent
from balsam_exec.site.daemon import running, stop
from balsam_exec.site.identity import has_ended, local, this_process
from balsam_exec.site.lease import Lease, lock_site, recorded_agent
from balsam_exec.site.main import DRAIN
from tests.site.conftest import SiteBench, start_agent
from tests.support.processes import wait_until


def elsewhere(hostname: str = "login2") -> AgentProcess:
    return AgentProcess(hostname=hostname, pid=1, start=0, machine="other/1", started=now())


def ended_here() -> AgentProcess:
    """A process of this machine that has ended."""
    with subprocess.Popen(["sleep", "300"]) as popen:
        process = Process.of(popen.pid)
        popen.kill()
    assert process is not None
    return this_process().model_copy(update={"pid": process.pid, "start": process.start})


def test_who_has_surely_ended() -> None:
    me = this_process()
    assert local(me) == Process.of(os.getpid())
    assert not has_ended(me)
    assert has_ended(me.model_copy(update={"start": me.start - 1})), "the pid is another process now"
    assert has_ended(ended_here())
    assert has_ended(elsewhere(socket.gethostname())), "the machine was started anew"
    assert not has_ended(elsewhere())
    boot = me.machine.partition("/")[0]
    out_of_a_container = elsewhere(me.hostname).model_copy(update={"machine": f"{boot}/1"})
    assert not has_ended(out_of_a_container)


def test_a_site_in_use_on_another_machine(site_bench: SiteBench) -> None:
    """What the two machines share is the service alone."""
    service, site_id = site_bench.service, site_bench.record.id
    theirs = Lease(elsewhere())
    theirs.take(service, site_id)
    refused = start_agent(site_bench)
    assert refused.returncode == 1
    assert "served by another agent: on login2, pid 1, heard of " in refused.stderr
    assert site_bench.service.site(site_id).hostname == site_bench.record.hostname
    theirs.release(service, site_id)
    agent = site_bench.agent()
    with pytest.raises(Conflict, match=f"on {socket.gethostname()}, pid {agent.popen.pid}"):
        theirs.take(service, site_id)


def test_one_that_has_ended_here_is_replaced_at_once(site_bench: SiteBench) -> None:
    service, site_id = site_bench.service, site_bench.record.id
    Lease(ended_here()).take(service, site_id)
    agent = site_bench.agent()
    found = service.site(site_id).agent
    assert found is not None
    assert found.pid == agent.popen.pid
    agent.popen.send_signal(signal.SIGTERM)
    assert agent.popen.wait(20) == 0
    assert service.site(site_id).agent is None, "given back at the end"


@pytest.mark.parametrize("how", ["taken", "removed"])
def test_an_agent_that_has_lost_its_site_ends(site_bench: SiteBench, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "INTERVAL", 0.05)
    service, site_id = site_bench.service, site_bench.record.id
    told: SimpleQueue[object] = SimpleQueue()
    agent = Agent(
        service.sibling, site_bench.site, this_process(), register=False, on_ready=told.put, on_error=told.put
    )
    agent.start()
    try:
        assert not isinstance(told.get(timeout=30), BalsamError)
        held = service.site(site_id).agent
        assert held is not None
        if how == "taken":
            other = Lease(elsewhere())
            service.beat(site_id, other._sign(replaces=held.holder))
        else:
            service.delete_site(site_id)
        error = told.get(timeout=30)
        assert isinstance(error, Conflict if how == "taken" else NotFound)
    finally:
        agent.stop()
    if how == "taken":
        found = service.site(site_id).agent
        assert found is not None
        assert found.hostname == "login2", "what it does not have it does not give back"


def test_the_lock_of_the_directory(tmp_path: Path) -> None:
    site = SiteDirectory(tmp_path)
    site.create("here")
    assert recorded_agent(site) is None
    me = this_process()
    with lock_site(site, me):
        assert recorded_agent(site) == me
        assert running(site) == me
        with pytest.raises(ConfigurationError, match=f"pid {me.pid}"), lock_site(site, elsewhere()):
            pass
        assert recorded_agent(site) == me
    assert recorded_agent(site) is None
    assert running(site) is None


def test_stopping_is_for_the_machine_of_the_agent(tmp_path: Path) -> None:
    site = SiteDirectory(tmp_path)
    site.create("here")
    assert stop(site, drain=False) is None
    lock = tmp_path / "agent.lock"
    lock.write_text(elsewhere().model_dump_json())
    with pytest.raises(ConfigurationError, match=r"runs on login2 \(pid 1\): there, `balsam site stop"):
        stop(site, drain=False)
    lock.write_text(ended_here().model_dump_json())
    assert stop(site, drain=True) is None


@pytest.fixture
def changing(site_bench: SiteBench) -> Callable[[str, str], None]:
    def change(old: str, new: str) -> None:
        text = site_bench.site.settings_file.read_text()
        assert old in text
        site_bench.site.settings_file.write_text(text.replace(old, new))

    return change


def status_of(site_bench: SiteBench, part: str) -> dict[str, str]:
    agent = site_bench.service.site(site_bench.record.id).agent
    found = {status.name: status for status in agent.parts} if agent else {}
    return found[part].model_dump(mode="json") if part in found else {}


def test_signals_have_settings_taken_over_and_allocations_ended(
    site_bench: SiteBench, changing: Callable[[str, str], None]
) -> None:
    agent = site_bench.agent()
    job = site_bench.batch_job()
    wait_until(lambda: site_bench.service.batch_job(job.id).state == "running", 20, "the allocation to run")
    changing("file_cleaner:\n  enabled: false", "file_cleaner:\n  enabled: true")
    changing("allowed_projects: []", "allowed_projects: [mine]")
    agent.popen.send_signal(signal.SIGHUP)
    wait_until(lambda: bool(status_of(site_bench, "file-cleaner")), 20, "the cleaner to work")
    assert site_bench.service.site(site_bench.record.id).allowed_projects == ["mine"]
    assert "SIGHUP: took over settings.yml: allocations, file-cleaner" in agent.log

    changing("idle_ttl_sec: 60", "idle_ttl_sec: long")
    agent.popen.send_signal(signal.SIGHUP)
    wait_until(lambda: "going on with the settings as they were" in agent.log, 20, "the refusal")
    site_bench.service.patch_site(site_bench.record.id, SitePatch(name="other"))
    wait_until(lambda: status_of(site_bench, "settings")["state"] == "retrying", 20, "the trouble to be told")
    assert "idle_ttl_sec" in status_of(site_bench, "settings")["error"]
    changing("idle_ttl_sec: long", "idle_ttl_sec: 30")
    wait_until(lambda: status_of(site_bench, "settings")["state"] == "running", 40, "the trouble to be over")

    assert site_bench.service.batch_job(job.id).state == "running"
    assert status_of(site_bench, "allocations")["progress"] == "the scheduler has 1 allocations"

    agent.popen.send_signal(DRAIN)
    assert agent.popen.wait(30) == 0
    assert site_bench.service.batch_job(job.id).state == "finished"
