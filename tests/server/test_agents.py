"""The lease by which one agent at a time serves a site."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balsam_exec.model.errors import Conflict, NotFound
from balsam_exec.model.sites import AgentBeat, PartStatus, SiteRecord
from balsam_exec.server.service import sites
from balsam_exec.server.store.types import moment
from tests.server.world import SECOND, World

TTL = 60


def beat(world: World, holder: str, **fields: Any) -> SiteRecord:
    sign = AgentBeat(
        **{
            "holder": holder,
            "hostname": f"login-{holder}",
            "pid": 4711,
            "start": 12,
            "machine": "boot",
            "started": moment(world.now),
            "ttl_sec": TTL,
            **fields,
        }
    )
    return SiteRecord.model_validate(world.write(sites.beat, world.owner, world.site, sign))


def site(world: World) -> SiteRecord:
    return SiteRecord.model_validate(world.read(sites.site, world.owner, world.site, world.now))


def test_a_site_has_one_agent(world: World) -> None:
    assert (site(world).agent, site(world).active) == (None, False)
    status = PartStatus(name="files", state="running", progress="read 3 files", progress_time=moment(world.now))
    taken = beat(world, "a", parts=[status])
    assert taken.active
    assert taken.agent is not None
    assert (taken.agent.hostname, taken.agent.holder, taken.agent.parts) == ("login-a", "a", [status])
    world.later(12)
    with pytest.raises(Conflict, match="on login-a, pid 4711, heard of 12 s ago") as caught:
        beat(world, "b")
    assert (caught.value.detail["agent"]["pid"], caught.value.detail["agent"]["start"]) == (4711, 12)
    assert site(world) == taken
    world.later(TTL - 13)
    assert beat(world, "a").agent != taken.agent  # kept for another while
    world.later(TTL - 1)
    with pytest.raises(Conflict):
        beat(world, "b")
    world.later(1)
    assert not site(world).active
    assert site(world).agent is not None  # who it was remains known
    assert beat(world, "b").active
    with pytest.raises(Conflict, match="login-b"):  # it learns that it was too late
        beat(world, "a")


def test_who_is_known_to_have_ended_is_replaced_at_once(world: World) -> None:
    beat(world, "a")
    with pytest.raises(Conflict):
        beat(world, "b", replaces="c")
    found = beat(world, "b", replaces="a").agent
    assert found is not None
    assert found.holder == "b"
    with pytest.raises(Conflict):
        beat(world, "a")


def test_given_back(world: World) -> None:
    beat(world, "a")
    world.write(sites.release, world.owner, world.site, "b")
    assert site(world).active
    world.write(sites.release, world.owner, world.site, "a")
    assert (site(world).agent, site(world).active) == (None, False)
    assert beat(world, "b").active


def test_only_the_owner_has_agents(world: World) -> None:
    beat(world, "a")
    owner, world.owner = world.owner, world.new_user("bob")
    with pytest.raises(NotFound):
        beat(world, "b", replaces="a")
    world.write(sites.release, world.owner, world.site, "a")
    world.owner = owner
    assert site(world).active


def test_never_two(world: World) -> None:
    """The service against a model of it that knows one thing: who has the site until when."""
    actions = st.tuples(st.sampled_from("abc"), st.sampled_from(["beat", "release", "wait"]), st.sampled_from("-abc"))

    @settings(max_examples=40, deadline=None)
    @given(st.lists(actions, max_size=20))
    def check(steps: list[tuple[str, str, str]]) -> None:
        world.empty()
        holder, until = "", 0
        for who, what, replaced in steps:
            if what == "wait":
                world.later(TTL / 2)
            elif what == "release":
                world.write(sites.release, world.owner, world.site, who)
                holder = "" if holder == who else holder
            else:
                free = not holder or until <= world.now or holder in (who, replaced)
                try:
                    beat(world, who, replaces=replaced)
                except Conflict:
                    assert not free
                else:
                    assert free
                    holder, until = who, world.now + TTL * SECOND
            found = site(world)
            assert (found.agent.holder if found.agent else "") == holder
            assert found.active == (bool(holder) and until > world.now)

    check()
