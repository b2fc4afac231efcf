"""The allocation function: libEnsemble's for persistent generators, and a limit to how long a run may take."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
from libensemble.alloc_funcs.start_only_persistent import only_persistent_gens

#: Runs that have to be completed before anyone can say what takes long.
FEWEST = 3

#: Set it to have everything cancelled, and the ensemble end.
interrupted = threading.Event()


def only_persistent_gens_in_time(
    W: Any,
    H: Any,
    sim_specs: dict[str, Any],
    gen_specs: dict[str, Any],
    alloc_specs: dict[str, Any],
    persis_info: dict[str, Any],
    libE_info: dict[str, Any],
) -> tuple[Any, ...]:
    """As `only_persistent_gens`; runs that take `patience` times as long as the median of the completed ones are
    cancelled, which the manager has their workers told (with `kill_canceled_sims`)."""
    running = H["sim_started"] & ~H["sim_ended"]
    if interrupted.is_set():
        H["cancel_requested"] |= ~H["sim_ended"]
        return {}, persis_info, int(not running.any())  # the last one ends the ensemble
    completed = H["sim_ended"] & np.isfinite(H["f"])
    if running.any() and completed.sum() >= FEWEST:
        took = H["sim_ended_time"][completed] - H["sim_started_time"][completed]
        limit = alloc_specs["user"]["patience"] * np.median(took)
        H["cancel_requested"] |= running & (time.time() - H["sim_started_time"] > limit)
    found: tuple[Any, ...] = only_persistent_gens(W, H, sim_specs, gen_specs, alloc_specs, persis_info, libE_info)
    return found
