"""Runs hypothesis's state machines in a world of their own."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from tests.server.world import World

#: How many times as many examples: `make test-long` sets it.
EFFORT = int(os.environ.get("BALSAM_TEST_EFFORT", "1"))
#: Seconds that such a test may take: a failure is made short for up to 300 before it is told.
TIMEOUT = 300 + 300 * EFFORT


def run_machine(kind: type[RuleBasedStateMachine], world: World, *, examples: int, steps: int) -> None:
    """Runs `examples` times EFFORT of `kind`, which finds the world as `self.world`; the world is closed then."""
    machine = type(kind.__name__, (kind,), {"world": world})
    try:
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            machine,
            settings=settings(
                max_examples=examples * EFFORT,
                stateful_step_count=steps,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                database=None,
                phases=[Phase.generate, Phase.shrink],  # to explain a failure takes longer than all else
            ),
        )
    finally:
        world.close()
