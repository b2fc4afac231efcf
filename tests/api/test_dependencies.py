"""Jobs that wait for others, as a user sees them: what fails with a parent, restarts, other parents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from balsam_exec.api import Client, EventLog, Job
from balsam_exec.model.errors import InvalidRequest, JobFailed
from balsam_exec.model.states import JobState


@pytest.fixture
def family(divide: Any) -> tuple[Job, Job, Job]:
    """A job that will fail, one that waits for it, and one that waits for that."""
    root = divide.submit("root", x=1, y=0)
    middle = divide.submit("middle", x=1, parent_ids=[root])
    return root, middle, divide.submit("last", x=2, parent_ids=[middle])


def test_who_waits_for_a_descendant_of_a_failure_is_told(
    family: tuple[Job, Job, Job], launch: Callable[[Any], Any], divide: Any
) -> None:
    root, middle, last = family
    launch(divide.site)
    with pytest.raises(JobFailed, match=rf"its parent {middle.id} failed because job {root.id} is FAILED") as raised:
        last.result(timeout=20)
    assert "exit code 1" in str(raised.value)
    with pytest.raises(ZeroDivisionError):
        root.result(timeout=20)
    assert last.root_cause == root.id


def test_a_restart_revives_all_below(family: tuple[Job, Job, Job], launch: Callable[[Any], Any], divide: Any) -> None:
    root, middle, last = family
    launcher = launch(divide.site)
    with pytest.raises(JobFailed):
        last.result(timeout=20)
    launcher.stop()
    root.refresh_from_db()
    root.parameters["y"] = 1
    root.state = "RESTART_READY"
    root.save()
    for job in (middle, last):
        job.refresh_from_db()
        assert job.state is JobState.AWAITING_PARENTS
        assert job.root_cause is None
    launch(divide.site)
    assert last.result(timeout=20) == 2
    root.refresh_from_db()
    assert root.num_runs == 2


def test_a_query_restarts_jobs_in_any_final_state(echo: Any, client: Client, launch: Callable[[Any], Any]) -> None:
    good, bad, killed = (echo.submit(name, words=name, code=str(int(name == "bad"))) for name in ("a", "bad", "c"))
    killed.kill()
    launcher = launch(echo.site)
    client.Job.objects.wait([good, bad, killed], timeout=20)
    launcher.stop()
    states = [JobState.JOB_FINISHED, JobState.FAILED, JobState.USER_KILLED]
    assert sorted(client.Job.objects.filter(site=echo.site).states()) == sorted(states)
    assert client.Job.objects.filter(site=echo.site).update(state="RESTART_READY") == 3
    assert client.Job.objects.filter(site=echo.site).states() == {JobState.RESTART_READY: 3}
    [event] = client.EventLog.objects.filter(job_id=bad.id, to_state="RESTART_READY")
    assert isinstance(event, EventLog)
    assert event.data == {"retry": 1}


def test_terms_of_a_failure(echo: Any) -> None:
    parent = echo.submit("w", words="x")
    jobs = {
        terms: echo.submit("w", words="x", parent_ids=[parent.id], on_parent_failure=terms, input_files=["*.out"])
        for terms in ("fail", "run", "hold")
    }
    assert jobs["run"].on_parent_failure == "run"
    assert jobs["run"].input_files == ["*.out"]
    parent.kill()
    for job in jobs.values():
        job.refresh_from_db()
    assert {terms: job.state.value for terms, job in jobs.items()} == {
        "fail": "FAILED",
        "run": "READY",
        "hold": "AWAITING_PARENTS",
    }
    late = echo.submit("w", words="x", parent_ids=[parent])
    assert late.state is JobState.FAILED
    assert late.root_cause == parent.id
    with pytest.raises(InvalidRequest, match="on_parent_failure"):
        echo.submit("w", words="x", on_parent_failure="weep")


def test_parents_can_be_others(echo: Any, client: Client) -> None:
    a, b = echo.submit("a", words="x"), echo.submit("b", words="x")
    child = echo.submit("c", words="x", parent_ids=[a])
    child.parent_ids = [b, a, b]
    child.save()
    assert child.parent_ids == [a.id, b.id]
    assert list(child.parent_query()) == [a, b]
    assert list(b.child_query()) == [child]
    child.parent_ids.remove(a.id)
    client.Job.objects.bulk_update([child])
    assert client.Job.objects.get(parent_id=b).parent_ids == [b.id]
    assert client.Job.objects.filter(id=child.id).update(parent_ids=[]) == 1
    child.refresh_from_db()
    assert (child.parent_ids, child.state) == ([], JobState.PREPROCESSED)
    with pytest.raises(InvalidRequest, match="not saved yet"):
        client.Job.objects.filter(id=child.id).update(parent_ids=[echo.submit("d", words="x", save=False)])


def test_a_circle_is_shown(echo: Any) -> None:
    a = echo.submit("a", words="x")
    b = echo.submit("b", words="x", parent_ids=[a])
    a.parent_ids = [b]
    with pytest.raises(InvalidRequest, match=f"circle: {a.id} -> {b.id} -> {a.id}"):
        a.save()


def test_nothing_is_made_when_a_parent_is_missing(echo: Any, client: Client) -> None:
    good = echo.submit("a", words="x", save=False)
    stray = echo.submit("b", words="x", parent_ids=[good, echo.submit("c", words="x", save=False)], save=False)
    with pytest.raises(InvalidRequest, match="neither saved nor among them"):
        client.Job.objects.bulk_create([good, stray])
    assert client.Job.objects.filter(site=echo.site).count() == 0


def test_a_long_chain_is_made_in_one_call(echo: Any, client: Client) -> None:
    jobs = [echo.submit("w/0", words="x", save=False)]
    for number in range(1, 100):
        jobs.append(echo.submit(f"w/{number}", words="x", parent_ids=[jobs[-1]], save=False))
    client.Job.objects.bulk_create(reversed(jobs))
    assert [job.parent_ids for job in jobs[1:]] == [[job.id] for job in jobs[:-1]]
    jobs[0].kill()
    assert client.Job.objects.filter(site=echo.site, state="FAILED").count() == 99
