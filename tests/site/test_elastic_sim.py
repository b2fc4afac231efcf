"""The simulator of the elastic queue: all jobs run, once, on nodes that were there."""

from __future__ import annotations

import pytest

from benchmarks.elastic_sim import BURSTS, KINDS, SiteModel, policies

NODES, JOBS = 256, 20_000


@pytest.mark.parametrize("name", [name for name, _ in policies(NODES)])
def test_every_policy_gets_all_jobs_done(name: str) -> None:
    model = SiteModel(dict(policies(NODES))[name], NODES, JOBS, seed=1)
    tally = model.run()
    assert model.campaign.over
    assert model.pilots == []
    jobs = [BURSTS * max(1, round(part * JOBS / BURSTS)) for part, *_ in KINDS]
    most = sum(n * nodes * minutes / per_node for n, (_, nodes, minutes, per_node) in zip(jobs, KINDS, strict=True))
    assert 0.6 * most <= tally.used <= most  # jobs take 0.6 of their time at least
    assert tally.used < tally.allocated
    assert 0 <= model.cluster.free <= NODES
    assert tally.waited > 0


def test_the_same_seed_gives_the_same_campaign() -> None:
    first, again = (SiteModel(dict(policies(NODES))["elastic, with backfill"], NODES, JOBS, seed=2) for _ in "ab")
    assert first.run() == again.run()
