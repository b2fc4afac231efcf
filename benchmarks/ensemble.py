"""One small ensemble of libEnsemble: each simulation is one `true` through an executor. Prints JSON.

Usage: ensemble.py EXECUTOR SIMS, with EXECUTOR one of balsam, mpi, plain; run in a directory of its own
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from datetime import datetime
from typing import Any

import numpy as np
from libensemble import Ensemble, logger
from libensemble.executors.executor import Executor
from libensemble.message_numbers import WORKER_DONE
from libensemble.specs import ExitCriteria, GenSpecs, LibeSpecs, SimSpecs

WORKERS = 2


def points(_H: Any, _persis_info: Any, gen_specs: dict[str, Any]) -> Any:
    """All simulations at once."""
    found = np.zeros(gen_specs["user"]["sims"], dtype=gen_specs["out"])
    found["x"] = np.arange(len(found))
    return found, None


def run_true(_H: Any, _persis_info: Any, sim_specs: dict[str, Any], info: dict[str, Any]) -> Any:
    """Run `true` and say when it was over."""
    task = info["executor"].submit(app_name="true", **sim_specs["user"])
    task.wait()
    # mpirun dies of SIGPIPE now and then on a busy machine.
    if task.state != "FINISHED" and not (task.runline.startswith("mpirun") and task.errcode == -13):
        raise RuntimeError(f"the task is {task.state}")
    found = np.zeros(1, dtype=sim_specs["out"])
    found["at"] = datetime.now().timestamp()
    return found, None, WORKER_DONE


def make_executor(kind: str) -> Executor:
    if kind == "balsam":
        from balsam_exec.executors import BalsamExecutor

        executor = BalsamExecutor()
        executor.submit_allocation(num_nodes=1, wall_time_min=10, job_mode="serial")
    elif kind == "mpi":
        from libensemble.executors import MPIExecutor

        executor = MPIExecutor()
    else:
        executor = Executor()
    executor.register_app(full_path=shutil.which("true"), app_name="true")
    return executor


def main(kind: str, sims: int) -> None:
    logger.set_level(logging.getLevelName(logging.ERROR))
    ensemble = Ensemble(
        executor=make_executor(kind),
        libE_specs=LibeSpecs(nworkers=WORKERS, comms="local", save_H_and_persis_on_abort=False, disable_log_files=True),
        gen_specs=GenSpecs(gen_f=points, out=[("x", float)], user={"sims": sims + 20}),
        sim_specs=SimSpecs(
            sim_f=run_true, inputs=["x"], out=[("at", float)], user={} if kind == "plain" else {"num_procs": 1}
        ),
        exit_criteria=ExitCriteria(sim_max=sims + 20),
    )
    H, _, flag = ensemble.run()
    if flag or not H["sim_ended"].all():
        raise SystemExit("not every simulation ended")
    at = np.sort(H["at"])  # the first twenty start processes, connections and workers
    print(json.dumps({"rate": sims / (at[-1] - at[19])}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
