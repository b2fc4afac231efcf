"""A campaign on a real Slurm whose allocations are lost in every way: all jobs finish, once, and nodes are used well.

BALSAM_CAMPAIGN_JOBS: how many jobs (by default as many as last until the shortest wall time that Slurm knows).
"""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from balsam_exec.model.events import EventRecord, Kind
from balsam_exec.model.jobs import JobRecord
from balsam_exec.model.states import JobState
from benchmarks.campaign import SETTINGS, Campaign, Completion, Outcome
from benchmarks.slurm import deployment_on_slurm
from benchmarks.slurm_campaign import tell
from benchmarks.utilization import Span, node_seconds, utilization
from tests.support.slurm import SlurmCluster

JOBS = int(os.environ.get("BALSAM_CAMPAIGN_JOBS", "340"))
SECONDS = 3.6

S = JobState


@pytest.mark.timeout(240)
def test_all_jobs_finish_once_whatever_happens_to_their_allocations(slurm: SlurmCluster) -> None:
    with deployment_on_slurm(**SETTINGS) as deployment:
        outcome = Campaign(deployment, slurm, JOBS, SECONDS).run(timeout=180)
    tell(outcome)
    assert outcome.problems() == []
    assert len(outcome.unheard) <= 5
    ends = [allocation.record.status_info["info"] for allocation in outcome.allocations[:3]]
    assert [end.partition(":")[0] for end in ends] == ["COMPLETED", "CANCELLED", "NODE_FAIL"]
    reasons = " ".join(outcome.cut_short)
    assert "time is over" in reasons
    assert "SIGTERM" in reasons or "told to end" in reasons
    assert outcome.utilization > 0.75  # on a busy machine, and with lost runs that are long for so short a campaign


# --- what is measured with


def record(job_id: int, **fields: object) -> JobRecord:
    at = datetime.now(UTC)
    fixed = {"app_id": 1, "site_id": 1, "workdir": "w", "tags": {}, "data": {}, "parameters": {}}
    return JobRecord.model_validate(
        {"id": job_id, **fixed, "state": S.JOB_FINISHED, "created": at, "last_update": at, **fields}
    )


def story(job_id: int, *hops: tuple[JobState, float], before: JobState = S.CREATED) -> list[EventRecord]:
    """The events of a job that comes to these states at these times."""
    found = []
    for state, at in hops:
        data = {"error": "the allocation's time is over"} if state is S.RUN_TIMEOUT else {}
        found.append(
            EventRecord(
                id=1,
                kind=Kind.JOB,
                subject_id=job_id,
                from_state=before,
                to_state=state,
                timestamp=datetime.fromtimestamp(at, UTC),
                data=data,
            )
        )
        before = state
    return found


#: A job of a quarter of a node, cut short once, and one of half of two nodes.
JOBS_OF_TWO = [record(1, node_packing_count=4, num_runs=2), record(2, num_nodes=2, node_packing_count=2)]
EVENTS = [
    *story(1, (S.PREPROCESSED, 0), (S.RUNNING, 10), (S.RUN_TIMEOUT, 12), (S.RESTART_READY, 12), (S.RUNNING, 14)),
    *story(2, (S.PREPROCESSED, 0), (S.RUNNING, 10), (S.RUN_DONE, 14), (S.JOB_FINISHED, 14)),
    *story(1, (S.RUN_DONE, 20), (S.JOB_FINISHED, 20), before=S.RUNNING),
]
COMPLETIONS = [Completion(1, 14.5, 19.5, ("a",), ("0",)), Completion(2, 10.5, 13.5, ("a", "b"), ())]
GOOD = Outcome(JOBS_OF_TWO, EVENTS, COMPLETIONS, [])


def test_utilization_counts_what_was_done_while_work_remained() -> None:
    """From 10 s, the first start, to 14 s, the last: the second job has a node in parts for 4 s, the first nothing."""
    allocations = [Span(5, 12, 2), Span(11, 100, 1)]
    assert node_seconds(allocations, 10, 14) == 2 * 2 + 3
    assert utilization(GOOD.runs, allocations) == pytest.approx(4 / 7)


def test_a_campaign_that_went_well_has_no_problems() -> None:
    assert GOOD.problems() == []
    assert GOOD.cut_short == {"the allocation's time is over": 1}
    assert GOOD.makespan == 10
    assert GOOD.ideal == pytest.approx((5 / 4 + 3) / 4)


def test_what_nobody_heard_of_is_done_again() -> None:
    """Only if it was done just before its run was cut short, at 12 s."""
    close, early = Completion(1, 10.1, 11.9, ("a",), ()), Completion(1, 10.1, 10.9, ("a",), ())
    crossed = replace(GOOD, completions=[close, *COMPLETIONS])
    assert (crossed.unheard, crossed.problems()) == ([close], [])
    assert replace(GOOD, completions=[early, *COMPLETIONS]).unheard == []


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (replace(GOOD, jobs=[record(1, state=S.FAILED), JOBS_OF_TWO[1]]), "job 1 is FAILED"),
        (replace(GOOD, events=EVENTS[:-2]), "the runs of job 1 ended as RUN_TIMEOUT"),
        (replace(GOOD, completions=COMPLETIONS[:1]), "job 2 did its work 0 times"),
        (replace(GOOD, completions=[*COMPLETIONS, Completion(1, 10, 11, ("a",), ())]), "job 1 did its work 2 times"),
        (replace(GOOD, completions=[Completion(1, 10, 11, ("a",), ()), COMPLETIONS[1]]), "job 1 did its work outside"),
        (replace(GOOD, completions=[COMPLETIONS[0], replace(COMPLETIONS[1], nodes=("a", "a"))]), "job 2 ran on"),
        (replace(GOOD, completions=[COMPLETIONS[0], Completion(2, 14, 15, ("a",), ("0",))]), "jobs 2 and 1 had GPU 0"),
    ],
)
def test_what_went_wrong_is_found(bad: Outcome, problem: str) -> None:
    assert any(found.startswith(problem) for found in bad.problems())
