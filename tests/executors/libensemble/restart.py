"""An ensemble that goes on where it was, after it has died: a point whose task exists is not submitted again."""

from __future__ import annotations

import sys

import numpy as np
from libensemble import Ensemble
from libensemble.message_numbers import WORKER_DONE
from libensemble.specs import ExitCriteria, GenSpecs, LibeSpecs, SimSpecs

from balsam_exec.executors import BalsamExecutor

POINTS = 3


def points(H, persis_info, gen_specs, libE_info):  # type: ignore[no-untyped-def]
    out = np.zeros(POINTS, dtype=gen_specs["out"])
    out["x"] = np.arange(POINTS)
    return out, persis_info


def evaluate(H, persis_info, sim_specs, libE_info):  # type: ignore[no-untyped-def]
    executor = libE_info["executor"]
    x = int(H["x"][0])
    known = executor.reattach(tags={"x": str(x)})
    command = ["-c", f"while [ ! -e go ]; do sleep 0.05; done; echo {x * x}"]
    task = (
        known[0] if known else executor.submit(app_name="sh", app_args=command, stdout=f"{x}.out", tags={"x": str(x)})
    )
    assert executor.polling_loop(task) == WORKER_DONE
    out = np.zeros(1, dtype=sim_specs["out"])
    out["f"] = float(task.read_stdout())
    return out, persis_info, WORKER_DONE


if __name__ == "__main__":
    executor = BalsamExecutor(sys.argv[1])
    executor.register_app(full_path="/bin/sh")
    ensemble = Ensemble(
        libE_specs=LibeSpecs(comms="local", nworkers=POINTS, disable_resource_manager=True),
        sim_specs=SimSpecs(sim_f=evaluate, inputs=["x"], outputs=[("f", float)]),
        gen_specs=GenSpecs(gen_f=points, outputs=[("x", float)]),
        exit_criteria=ExitCriteria(sim_max=POINTS),
        executor=executor,
    )
    H, _, flag = ensemble.run()
    assert flag == 0
    assert sorted(H["f"][:POINTS]) == [x * x for x in range(POINTS)], H
    print("ensemble done")
