"""An ensemble in which tasks are killed: by the sim function that waits for them too long, and by the manager when the
generator has cancelled their points.

Points are seconds to sleep. The generator gives three: one that the sim function kills after its time, one to be
cancelled, and a short one, whose return makes the generator cancel the second.
"""

from __future__ import annotations

import os

import numpy as np
from libensemble import Ensemble
from libensemble.alloc_funcs.start_only_persistent import only_persistent_gens
from libensemble.message_numbers import EVAL_GEN_TAG, FINISHED_PERSISTENT_GEN_TAG, PERSIS_STOP, STOP_TAG
from libensemble.specs import AllocSpecs, ExitCriteria, GenSpecs, LibeSpecs, SimSpecs
from libensemble.tools.persistent_support import PersistentSupport

from balsam_exec.executors import BalsamExecutor

TOO_LONG, CANCELLED, SHORT = 1001.0, 1002.0, 0.5


def points(H, persis_info, gen_specs, libE_info):  # type: ignore[no-untyped-def]
    support = PersistentSupport(libE_info, EVAL_GEN_TAG)
    out = np.zeros(3, dtype=gen_specs["out"])
    out["x"] = [TOO_LONG, CANCELLED, SHORT]
    support.send(out)
    tag, returned = None, 0
    while tag not in (STOP_TAG, PERSIS_STOP) and returned < 2:
        tag, _, results = support.recv()
        if results is None:
            break
        returned += len(results)
        if SHORT in results["x"]:
            support.request_cancel_sim_ids([1])
    return None, persis_info, FINISHED_PERSISTENT_GEN_TAG


def sleep(H, persis_info, sim_specs, libE_info):  # type: ignore[no-untyped-def]
    executor = libE_info["executor"]
    x = float(H["x"][0])
    task = executor.submit(app_name="sleep", app_args=f"{x}", wait_on_start=True)
    status = executor.polling_loop(task, timeout=1.0 if x == TOO_LONG else None, poll_manager=True)
    with open(os.path.join(sim_specs["user"]["notes"], f"{x}"), "w") as notes:
        notes.write(f"{task.state} {status}")
    return np.zeros(1, dtype=sim_specs["out"]), persis_info, status


if __name__ == "__main__":
    executor = BalsamExecutor("kills")
    executor.register_app(full_path="/bin/sleep")
    allocation = executor.submit_allocation(None, 1, 10)
    ensemble = Ensemble(
        libE_specs=LibeSpecs(comms="local", nworkers=4, disable_resource_manager=True, kill_canceled_sims=True),
        sim_specs=SimSpecs(sim_f=sleep, inputs=["x"], outputs=[("f", float)], user={"notes": os.getcwd()}),
        gen_specs=GenSpecs(gen_f=points, persis_in=["x"], outputs=[("x", float)]),
        alloc_specs=AllocSpecs(alloc_f=only_persistent_gens, user={"async_return": True, "active_recv_gen": True}),
        exit_criteria=ExitCriteria(wallclock_max=60),
        executor=executor,
    )
    ensemble.run()
    executor.revoke_allocation(allocation)
