"""The generator: a surrogate of the mini-app that learns from each run and says which diffusivities to try next."""

from __future__ import annotations

from typing import Any

import numpy as np
import plate
from libensemble.message_numbers import EVAL_GEN_TAG, FINISHED_PERSISTENT_GEN_TAG, PERSIS_STOP, STOP_TAG
from libensemble.tools.persistent_support import PersistentSupport
from surrogate import Surrogate

#: Runs to learn from before the surrogate is asked.
FEWEST = 3
#: Places to choose a proposal from: so many all over the range, and as many near the best so far, at distances of
#: these powers of ten, in units of the range.
CANDIDATES, DISTANCES = 200, (-3.5, -0.5)


def surrogate_gen(
    H: Any, persis_info: dict[str, Any], gen_specs: dict[str, Any], libE_info: dict[str, Any]
) -> tuple[None, Any, int]:
    """Propose diffusivities H["k"], one for each run that comes back (give `async_return` to the allocation function).

    It begins with the centre and the corners of the range. Then it draws what the mini-app might say from a Gaussian
    process through all cooling times seen so far, a new draw for each proposal, and proposes where the drawn misfit is
    least (Thompson sampling): proposals differ as much as the surrogate is unsure. Runs that were killed teach nothing,
    and need not: they are far off.
    """
    user = gen_specs["user"]
    random = persis_info["rand_stream"]
    support = PersistentSupport(libE_info, EVAL_GEN_TAG)
    design = [[0.5, 0.5], [1, 1], [1, 0], [0, 1], [0, 0]]
    points, times = np.empty((0, 2)), np.empty((0, plate.READINGS))
    wanted, tag = gen_specs["initial_batch_size"], None
    while tag not in (STOP_TAG, PERSIS_STOP):
        H_o = np.zeros(wanted, dtype=gen_specs["out"])
        for row in H_o:
            unit = design.pop(0) if design else propose(points, np.log(times), np.log(user["measured"]), random)
            row["k"] = user["lb"] + unit * (user["ub"] - user["lb"])
        tag, _, returned = support.send_recv(H_o)
        if returned is not None:
            done = returned[np.isfinite(returned["f"])]
            unit = (done["k"] - user["lb"]) / (user["ub"] - user["lb"])
            points, times = np.vstack([points, unit]), np.vstack([times, done["times"]])
            wanted = len(returned)
    return None, persis_info, FINISHED_PERSISTENT_GEN_TAG


def propose(points: plate.Array, values: plate.Array, target: plate.Array, random: np.random.Generator) -> plate.Array:
    """Where, in the unit square, `values` might be nearest to `target`, given what they are at `points`."""
    if len(points) < FEWEST:
        return random.uniform(size=2)
    best = points[np.argmin(((values - target) ** 2).sum(1))]
    near = best + random.normal(size=(CANDIDATES, 2)) * 10 ** random.uniform(*DISTANCES, (CANDIDATES, 1))
    candidates = np.vstack([random.uniform(size=(CANDIDATES, 2)), np.clip(near, 0, 1)])
    drawn = Surrogate(points, values).draw(candidates, random)
    chosen: plate.Array = candidates[np.argmin(((drawn - target) ** 2).sum(1))]
    return chosen
