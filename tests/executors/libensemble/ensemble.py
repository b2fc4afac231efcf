"""A small ensemble as users write them, run by the tests under each of libEnsemble's ways to have workers.

    python ensemble.py fork|spawn|forkserver|threads|manager
    mpiexec -n 4 python ensemble.py mpi
    python ensemble.py --comms tcp --nworkers 3

Each sim evaluates x by two tasks, an ApplicationDefinition and an executable, and notes what it saw in an output field.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from libensemble import Ensemble
from libensemble.alloc_funcs.start_only_persistent import only_persistent_gens
from libensemble.gen_funcs.persistent_sampling import persistent_uniform
from libensemble.gen_funcs.sampling import latin_hypercube_sample
from libensemble.message_numbers import TASK_FAILED, WORKER_DONE
from libensemble.specs import AllocSpecs, ExitCriteria, GenSpecs, LibeSpecs, SimSpecs
from libensemble.tools import parse_args

from balsam_exec.api import ApplicationDefinition
from balsam_exec.executors import BalsamExecutor

WORKERS = 3
SIMS = 9


class Square(ApplicationDefinition):
    """Prints the square of x, and fails for none."""

    site = os.environ["BALSAM_SITE"]
    command_template = "python3 -c 'import sys; x = float(sys.argv[1]); print(x * x)' {{ x }}"


def evaluate(H, persis_info, sim_specs, libE_info):  # type: ignore[no-untyped-def]
    executor = libE_info["executor"]
    assert executor is BalsamExecutor.executor
    assert executor.workerID == libE_info["workerID"]
    x = float(H["x"][0][0])
    out = np.zeros(1, dtype=sim_specs["out"])
    squared = executor.submit(app_name="square", app_args={"x": x}, max_tasks_per_node=WORKERS, tags={"part": "square"})
    shown = executor.submit(app_name="echo", app_args=f"worker {executor.workerID}")
    status = executor.polling_loop(squared, timeout=60)
    shown.wait(60)
    assert shown.workerID == libE_info["workerID"], "another worker's task"
    assert f"_worker{libE_info['workerID']}_" in shown.name
    assert shown.read_stdout() == f"worker {executor.workerID}\n"
    if status == WORKER_DONE:
        out["f"] = float(squared.read_stdout())
    out["worker"] = executor.workerID
    return out, persis_info, WORKER_DONE if squared.success else TASK_FAILED


def main(mode: str) -> None:
    comms = mode if mode in ("threads", "mpi", "tcp") else "local"
    if mode in ("fork", "spawn", "forkserver"):
        multiprocessing.set_start_method(mode)
    executor = BalsamExecutor(f"squares-{mode}")
    executor.register_app(Square, app_name="square")
    executor.register_app(full_path="/bin/echo")
    persistent = mode == "manager"
    workers: dict[str, Any] = {"comms": comms, "nworkers": WORKERS}
    manager = True
    if mode == "tcp":  # each worker is this script, called by libEnsemble with options of its own
        _, manager, workers, _ = parse_args()
    elif mode == "mpi":
        del workers["nworkers"]
    specs = LibeSpecs(
        **workers,
        gen_on_manager=persistent,
        sim_dirs_make=mode != "threads",  # they change the working directory, which threads share
        use_workflow_dir=False,
        disable_resource_manager=True,
        stats_fmt={"task_timing": True},
    )
    bounds = {"lb": np.array([-3.0]), "ub": np.array([3.0])}
    if persistent:
        gen = GenSpecs(
            gen_f=persistent_uniform,
            persis_in=["sim_id", "f"],
            outputs=[("x", float, (1,))],
            user={"initial_batch_size": 3, **bounds},
        )
        alloc = AllocSpecs(alloc_f=only_persistent_gens)
    else:
        gen = GenSpecs(gen_f=latin_hypercube_sample, outputs=[("x", float, (1,))], user={"gen_batch_size": 3, **bounds})
        alloc = AllocSpecs()
    sim = SimSpecs(sim_f=evaluate, inputs=["x"], outputs=[("f", float), ("worker", int)])
    ensemble = Ensemble(
        libE_specs=specs,
        sim_specs=sim,
        gen_specs=gen,
        alloc_specs=alloc,
        exit_criteria=ExitCriteria(sim_max=SIMS),
        executor=executor,
    )
    ensemble.add_random_streams()
    manager = ensemble.is_manager if mode == "mpi" else manager
    allocation = executor.submit_allocation(None, 1, 10) if manager else None
    H, _, flag = ensemble.run()
    if allocation is None:
        return
    assert flag == 0
    done = H[H["sim_ended"]][:SIMS]
    assert np.allclose(done["f"], done["x"][:, 0] ** 2), done
    assert len(set(done["worker"])) > 1
    assert executor.revoke_allocation(allocation)
    stats = Path("libE_stats.txt").read_text()
    assert stats.count("Task 1:") == SIMS, stats
    assert "Task 2:" not in stats, "a worker reports another's tasks"
    print("ensemble done")


if __name__ == "__main__":
    main("tcp" if sys.argv[1].startswith("--") else sys.argv[1])
