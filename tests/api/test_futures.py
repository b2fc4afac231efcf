"""Jobs as futures: waiting, results, failures."""

from __future__ import annotations

import concurrent.futures
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from balsam_exec.api import Client, JobState, Site
from balsam_exec.apps.payload import RemoteTraceback
from balsam_exec.model.errors import DoesNotExist, InvalidRequest, JobCancelled, JobFailed
from tests.support.services import LiveService

Launch = Callable[[Site], Any]


def test_a_python_app_gives_its_value(divide: Any, site: Site, launch: Launch) -> None:
    job = divide.submit("w", x=6, y=4)
    assert not job.done()
    with pytest.raises(TimeoutError, match="PREPROCESSED"):
        job.result_nowait()
    launch(site)
    assert job.result(timeout=20) == 1.5
    assert job.done()
    assert job.result_nowait() == 1.5
    assert job.state is JobState.JOB_FINISHED
    assert job.return_code == 0


def test_the_apps_own_exception_is_raised_with_the_remote_traceback(divide: Any, site: Site, launch: Launch) -> None:
    launch(site)
    job = divide.submit("w", x=6, y=0)
    with pytest.raises(ZeroDivisionError) as caught:
        job.result(timeout=20)
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert "in run" in str(caught.value.__cause__)
    assert job.state is JobState.FAILED


def test_a_command_has_no_value_and_its_failure_tells_code_and_output(echo: Any, site: Site, launch: Launch) -> None:
    launch(site)
    good = echo.submit("w", words="hello")
    bad = echo.submit("w", words="it broke", code=3)
    assert good.result(timeout=20) is None
    with pytest.raises(JobFailed, match="it broke") as caught:
        bad.result(timeout=20)
    assert caught.value.detail["return_code"] == 3
    assert bad.return_code == 3


def test_result_in_time_or_timeout_error(divide: Any) -> None:
    job = divide.submit("w", x=1)
    started = time.monotonic()
    with pytest.raises(TimeoutError, match="1 of 1"):
        job.result(timeout=0.2)
    assert 0.2 <= time.monotonic() - started < 5


def test_a_killed_job_is_cancelled(divide: Any, client: Client) -> None:
    job = divide.submit("w", x=1)
    other = client.Job.objects.get(id=job.id)
    other.state = JobState.USER_KILLED
    other.save()
    with pytest.raises(JobCancelled):
        job.result(timeout=20)
    with pytest.raises(concurrent.futures.CancelledError):
        job.result_nowait()


def test_killed_while_waited_for(divide: Any, client: Client) -> None:
    job = divide.submit("w", x=1)
    timer = threading.Timer(0.3, lambda: client.service.cancel_jobs([job.id]))
    timer.start()
    with pytest.raises(JobCancelled):
        job.result(timeout=20)
    timer.join()


def test_a_deleted_job_is_not_waited_for_in_vain(divide: Any, client: Client) -> None:
    gone, going = divide.submit("w", x=1), divide.submit("w", x=1)
    client.Job.objects.get(id=gone.id).delete()
    with pytest.raises(DoesNotExist):
        gone.result(timeout=20)
    timer = threading.Timer(0.3, lambda: client.service.delete_job(going.id))
    timer.start()
    with pytest.raises(DoesNotExist, match="deleted"):
        going.result(timeout=20)
    timer.join()


def test_a_restarted_job_gives_its_new_result(echo: Any, site: Site, launch: Launch) -> None:
    launch(site)
    job = echo.submit("w", words="x", code=1)
    with pytest.raises(JobFailed):
        job.result(timeout=20)
    job.state = "RESTART_READY"
    job.save()
    assert job.state not in (JobState.FAILED, JobState.JOB_FINISHED)
    with pytest.raises(JobFailed):
        job.result(timeout=20)
    assert [event.to_state for event in job.client().EventLog.objects.filter(job_id=job.id)].count("FAILED") == 2


def test_wait_for_all(divide: Any, site: Site, launch: Launch) -> None:
    made = site._own_client.Job.objects.bulk_create([divide.submit(f"w/{i}", x=i, save=False) for i in range(30)])
    timer = threading.Timer(0.2, lambda: launch(site))
    timer.start()
    done, not_done = site._own_client.Job.objects.wait(made, timeout=30)
    timer.join()
    assert (done, not_done) == (made, [])
    assert [job.result(timeout=5) for job in made] == list(range(30))


def test_results_of_jobs_that_were_waited_for_are_asked_for_together(
    divide: Any, client: Client, site: Site, launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(site)
    jobs = client.Job.objects.bulk_create([divide.submit("w", x=i, save=False) for i in range(30)])
    client.Job.objects.wait(jobs, timeout=30)
    asked: list[list[int]] = []
    results = client.service.results

    def noting(ids: Any) -> Any:
        asked.append(list(ids))
        return results(ids)

    monkeypatch.setattr(client.service, "results", noting)
    assert [job.result() for job in jobs] == list(range(30))
    assert len(asked) == 1


def test_wait_gives_back_what_is_not_done_in_time(divide: Any, client: Client, site: Site, launch: Launch) -> None:
    launch(site)
    ends = divide.submit("w", x=1)
    ends.result(timeout=20)
    elsewhere = client.Site.objects.create(name=site.name + "-idle")
    stays = type("Divide", (divide,), {"site": elsewhere}).submit("w", x=1)
    assert client.Job.objects.wait([stays, ends], timeout=0.3) == ([ends], [stays])
    assert client.Job.objects.wait([stays, ends], return_when="FIRST_COMPLETED") == ([ends], [stays])


def test_wait_for_the_first_failure(divide: Any, client: Client, site: Site, launch: Launch) -> None:
    fine = divide.submit("w", x=1)
    bad = divide.submit("w", x=1, y=0)
    never = divide.submit("w", x=1, num_nodes=50)  # the launcher has one node
    launch(site)
    done, not_done = client.Job.objects.wait([fine, never, bad], timeout=20, return_when="FIRST_EXCEPTION")
    assert bad in done
    assert never in not_done
    with pytest.raises(InvalidRequest):
        client.Job.objects.wait([fine], return_when="SOMETIMES")  # type: ignore[arg-type]


def test_as_completed_gives_each_job_once_as_it_ends(divide: Any, client: Client, site: Site, launch: Launch) -> None:
    jobs = client.Job.objects.bulk_create([divide.submit(f"w/{i}", x=i, save=False) for i in range(10)])
    launch(site)
    seen = [job.id for job in client.Job.objects.as_completed(jobs, timeout=30)]
    assert sorted(seen) == [job.id for job in jobs]
    never = divide.submit("w", x=1, num_nodes=50)
    ending = client.Job.objects.as_completed([never, *jobs], timeout=0.3)
    assert {next(ending).id for _ in jobs} == set(seen)
    with pytest.raises(TimeoutError):
        next(ending)


def test_waiting_for_nothing_and_for_the_unsaved(client: Client, divide: Any) -> None:
    assert client.Job.objects.wait([]) == ([], [])
    with pytest.raises(InvalidRequest, match="not saved"):
        client.Job.objects.wait([divide.submit("w", x=1, save=False)])


def test_many_waiters_share_one_follower(divide: Any, client: Client, site: Site, launch: Launch) -> None:
    jobs = [divide.submit("w", x=i) for i in range(8)]
    values: dict[int, Any] = {}
    before = set(threading.enumerate())
    threads = [
        threading.Thread(target=lambda job=job, i=i: values.update({i: job.result(timeout=30)}))
        for i, job in enumerate(jobs)
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while len(client.completions._watches) < len(jobs) and time.monotonic() < deadline:
        threads[0].join(0.01)
    assert len(set(threading.enumerate()) - before - set(threads)) == 1
    launch(site)
    for thread in threads:
        thread.join(30)
    assert values == {i: i for i in range(8)}
    assert not client.completions._watches


def test_no_end_is_missed_between_looking_and_waiting(divide: Any, client: Client, site: Site, launch: Launch) -> None:
    launch(site)
    for i in range(40):  # each ends while the caller is somewhere between submit and wait
        assert divide.submit("w", x=i).result(timeout=20) == i


def test_waiting_in_a_forked_child(divide: Any, site: Site, launch: Launch) -> None:
    launch(site)
    assert divide.submit("w", x=1).result(timeout=20) == 1  # the parent has a follower of its own by now
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, str(divide.submit("w", x=2).result(timeout=20)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        assert pipe.read() == "2.0"
    os.waitpid(child, 0)


def test_waiting_outlives_a_restart_of_the_service(live: LiveService, divide: Any, site: Site, launch: Launch) -> None:
    job = divide.submit("w", x=1)
    value: list[Any] = []
    waiter = threading.Thread(target=lambda: value.append(job.result(timeout=60)))
    waiter.start()
    live.restart()
    launch(site)
    waiter.join(60)
    assert value == [1.0]
