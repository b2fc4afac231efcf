"""The agent, a real process on a real service, with allocations on this machine."""

from __future__ import annotations

import signal
import threading
from datetime import UTC, datetime

import pytest

from balsam_exec.model.batch_jobs import BatchJobPatch
from balsam_exec.model.sites import SitePatch
from balsam_exec.model.states import BatchJobState
from balsam_exec.platform.processes import Process
from balsam_exec.site.settings_watch import SettingsWatch
from tests.site.conftest import SiteBench, start_agent
from tests.support.processes import wait_until

RUNNING, FINISHED = BatchJobState.RUNNING, BatchJobState.FINISHED


def leader_of(scheduler_id: str | None) -> Process:
    assert scheduler_id is not None
    pid, start = scheduler_id.partition("@")[0].split(".")
    return Process(int(pid), int(start))


def test_an_allocation_from_request_to_end(site_bench: SiteBench) -> None:
    site_bench.agent()
    job = site_bench.wait_state(site_bench.batch_job("echo so; exit 3"), FINISHED)
    assert site_bench.logged(job) == [f"allocation {job.id}", "so"]
    assert job.status_info == {"info": "exit code 3", "exit_code": 3}
    assert job.start_time is not None
    assert job.end_time is not None
    assert job.created <= job.start_time <= job.end_time <= datetime.now(UTC)


def test_what_was_asked_for_before_the_agent_came(site_bench: SiteBench) -> None:
    job = site_bench.batch_job("true")
    site_bench.agent()
    site_bench.wait_state(job, FINISHED)


def test_cancel(site_bench: SiteBench) -> None:
    site_bench.agent()
    job = site_bench.wait_state(site_bench.batch_job(), RUNNING)
    site_bench.service.patch_batch_job(job.id, BatchJobPatch(state=BatchJobState.PENDING_DELETION))
    ended = site_bench.wait_state(job, FINISHED)
    assert ended.status_info["cancelled"] is True
    assert not leader_of(job.scheduler_id).alive


def test_cancel_before_the_agent_came(site_bench: SiteBench) -> None:
    job = site_bench.batch_job()
    site_bench.service.patch_batch_job(job.id, BatchJobPatch(state=BatchJobState.PENDING_DELETION))
    site_bench.agent()
    assert "before" in site_bench.wait_state(job, FINISHED).status_info["info"]
    assert site_bench.logged(job) == []


def test_a_template_that_does_not_work_is_a_failed_submission(site_bench: SiteBench) -> None:
    template = site_bench.site.job_template
    agent = site_bench.agent()
    wrong = {
        "{{ no_such_thing }}": "UndefinedError: 'no_such_thing'",
        "{% if %}": "TemplateSyntaxError: ",
        "{{ 'nodes' + 1 }}": "TypeError: ",
        "{{ 1 // 0 }}": "ZeroDivisionError: ",
    }
    for text, words in wrong.items():
        template.write_text(f"#!/bin/bash\n{text}\n")
        job = site_bench.wait_state(site_bench.batch_job(), BatchJobState.SUBMIT_FAILED)
        assert f"{template}: " in job.status_info["error"]
        assert words in job.status_info["error"]
    template.unlink()
    job = site_bench.wait_state(site_bench.batch_job(), BatchJobState.SUBMIT_FAILED)
    assert job.status_info["error"] == f"{template}: No such file or directory"
    assert "Traceback" not in agent.log
    site_bench.site.job_template.write_text("#!/bin/bash\ntrue\n")
    site_bench.wait_state(site_bench.batch_job(), FINISHED)


def test_killed_it_leaves_allocations_to_the_next_one(site_bench: SiteBench) -> None:
    first = site_bench.agent()
    stays = site_bench.wait_state(site_bench.batch_job(), RUNNING)
    ends = site_bench.wait_state(site_bench.batch_job(), RUNNING)
    first.kill()
    assert leader_of(stays.scheduler_id).alive
    leader_of(ends.scheduler_id).end(5)
    site_bench.agent()
    ended = site_bench.wait_state(ends, FINISHED)
    assert ended.scheduler_id == ends.scheduler_id
    assert site_bench.service.batch_job(stays.id) == stays
    leader_of(stays.scheduler_id).end(5)
    site_bench.wait_state(stays, FINISHED)  # the new agent is told of the end of what it did not start


def test_killed_between_submitting_and_recording(site_bench: SiteBench) -> None:
    """The service never heard of the submission; the next agent finds it and does not submit again."""
    agent = site_bench.agent()
    job = site_bench.wait_state(site_bench.batch_job(), RUNNING)
    agent.kill()
    # A request that nothing is recorded of, whose key the scheduler knows: that is how the crash leaves it.
    twin = site_bench.batch_job()
    (marker,) = site_bench.site.qsubmit.glob(f"{job.id}-*.id")
    stamp = f"{twin.created.astimezone(UTC):%Y%m%dT%H%M%S}"
    marker.rename(marker.with_name(f"{twin.id}-{stamp}.id"))
    site_bench.agent()
    assert site_bench.wait_state(twin, RUNNING).scheduler_id == job.scheduler_id
    assert site_bench.logged(twin) == []


def test_drain_ends_all_and_starts_nothing(site_bench: SiteBench) -> None:
    agent = site_bench.agent()
    job = site_bench.wait_state(site_bench.batch_job(), RUNNING)
    agent.tell("drain")
    assert agent.popen.wait(20) == 0
    assert site_bench.service.batch_job(job.id).state is FINISHED
    assert not leader_of(job.scheduler_id).alive
    waiting = site_bench.batch_job("true")
    assert site_bench.service.batch_job(waiting.id).state is BatchJobState.PENDING_SUBMISSION
    site_bench.agent()
    site_bench.wait_state(waiting, FINISHED)


@pytest.mark.parametrize("trouble", ["away", "revoked"])
def test_drain_does_not_need_the_service(site_bench: SiteBench, trouble: str) -> None:
    agent = site_bench.agent()
    job = site_bench.wait_state(site_bench.batch_job(), RUNNING)
    if trouble == "away":
        site_bench.live.kill()
    else:
        service = site_bench.service
        for token in service.tokens():
            service.revoke_token(token.id)
    agent.tell("drain")
    assert leader_of(job.scheduler_id).wait(10)
    assert agent.popen.wait(20) == 0
    site_bench.live.restart()  # with a valid token
    site_bench.forget_client()
    site_bench.agent()
    site_bench.wait_state(job, FINISHED)


@pytest.mark.parametrize("how", ["eof", "sigterm"])
def test_told_to_end_it_lets_allocations_go_on(site_bench: SiteBench, how: str) -> None:
    agent = site_bench.agent()
    job = site_bench.wait_state(site_bench.batch_job(), RUNNING)
    if how == "sigterm":
        agent.popen.send_signal(signal.SIGTERM)
        assert agent.popen.wait(20) == 0
    assert agent.close() == 0
    assert leader_of(job.scheduler_id).alive


def test_the_service_may_go_and_come_back(site_bench: SiteBench) -> None:
    site_bench.agent()
    before = site_bench.wait_state(site_bench.batch_job(), RUNNING)
    site_bench.live.kill()
    leader_of(before.scheduler_id).end(5)
    site_bench.live.start()
    site_bench.wait_state(before, FINISHED, timeout=40)
    site_bench.wait_state(site_bench.batch_job("true"), FINISHED, timeout=40)


def test_a_renamed_site_is_still_the_site(site_bench: SiteBench) -> None:
    site_bench.service.patch_site(site_bench.record.id, SitePatch(name="another"))
    agent = site_bench.agent()
    assert agent.ready == {"site_id": site_bench.record.id, "site": "another"}
    site_bench.service.patch_site(site_bench.record.id, SitePatch(name="third"))
    site_bench.wait_state(site_bench.batch_job("true"), FINISHED)


def test_the_agent_is_heard_of(site_bench: SiteBench) -> None:
    assert site_bench.record.last_refresh is None
    site_bench.agent()
    heard = site_bench.service.site(site_bench.record.id).last_refresh
    assert heard is not None
    assert (datetime.now(UTC) - heard).total_seconds() < 30


def test_one_agent_at_a_time(site_bench: SiteBench) -> None:
    site_bench.agent()
    second = start_agent(site_bench)
    assert second.returncode == 1
    assert "another agent serves" in second.stderr


def test_a_token_that_is_not_valid_ends_it(site_bench: SiteBench) -> None:
    agent = start_agent(site_bench, BALSAM_TOKEN="no-such-token")
    assert agent.returncode == 1
    assert "Traceback" not in agent.stderr


def test_an_unknown_site_ends_it(site_bench: SiteBench) -> None:
    site_bench.site.record_id(4711)
    agent = start_agent(site_bench)
    assert agent.returncode == 1
    assert "4711" in agent.stderr
    site_bench.site.record_id(site_bench.record.id)


def test_all_allocations_are_seen_however_many(site_bench: SiteBench) -> None:
    """More than one page of them."""
    jobs = [site_bench.batch_job() for _ in range(105)]
    for job in jobs:
        site_bench.service.patch_batch_job(job.id, BatchJobPatch(state=BatchJobState.PENDING_DELETION))
    site_bench.agent()
    ids = {job.id for job in jobs}

    def all_ended() -> bool:
        return ids <= {job.id for job in site_bench.service.batch_jobs(state=FINISHED, limit=1000).results}

    wait_until(all_ended, 30, "all to be ended")


def test_a_part_that_is_stopped_before_it_follows_the_feed_ends(site_bench: SiteBench) -> None:
    watch = SettingsWatch(site_bench.service, site_bench.record.id, reload=lambda: "")
    watch.stop()
    thread = threading.Thread(target=watch.run, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
