"""The simulation function: the mini-app for one pair of diffusivities, watched while it runs."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import plate
from libensemble.executors.executor import Executor, Task, TimeoutExpired
from libensemble.message_numbers import MAN_KILL_SIGNALS, TASK_FAILED, WORKER_DONE, WORKER_KILL_ON_ERR

#: Seconds between looks at what a running mini-app has written.
LOOK_EVERY = 0.1

#: The columns of what the mini-app writes.
TIME, ENERGY, PROBES = 0, 1, slice(2, None)


def heat_sim(H: Any, persis_info: Any, sim_specs: dict[str, Any], libE_info: dict[str, Any]) -> tuple[Any, Any, int]:
    """Run the mini-app for the diffusivities H["k"] and compare with `plate.measured`.

    Gives the misfit `f` and the cooling `times`, NaN for what was killed or failed, and the id of the `job`.
    """
    user = sim_specs["user"]
    kx, ky = map(float, H["k"][0])
    executor = libE_info["executor"]
    task = executor.submit(
        app_name="heat",
        app_args={
            "heat": user["heat"],
            "kx": kx,
            "ky": ky,
            "cells": user["cells"],
            "step": plate.time_step(user["cells"]),
            "end": plate.END,
        },
        num_procs=user["num_procs"],
        max_tasks_per_node=user["max_tasks_per_node"],
        workdir=f"sim{libE_info['H_rows'][0]:04}",
        stdout="heat.out",
        stderr="heat.err",
    )
    calc_status = watch(task, executor)

    H_o = np.zeros(1, dtype=sim_specs["out"])
    H_o["status"], H_o["job"] = calc_status, task.process.id
    H_o["f"], H_o["times"] = np.nan, np.nan
    if calc_status == WORKER_DONE:
        history = read_history(task)
        times = plate.cooling_times(history[:, TIME], history[:, PROBES].T)
        H_o["times"] = times
        H_o["f"] = plate.misfit(times, plate.measured())
    return H_o, persis_info, calc_status


def watch(task: Task, executor: Executor) -> int:
    """Wait for the end of the task, or end it: when the manager says so, and when it diverges. The calc status."""
    while not task.finished:
        signal = executor.manager_poll()
        if signal in MAN_KILL_SIGNALS:
            task.kill()
            return int(signal)
        with suppress(TimeoutExpired):
            task.wait(timeout=LOOK_EVERY)
        if diverges(read_history(task)):
            if not task.finished:
                task.kill()
            return WORKER_KILL_ON_ERR if task.state == "USER_KILLED" else TASK_FAILED
    return WORKER_DONE if task.state == "FINISHED" else TASK_FAILED


def diverges(history: plate.Array) -> bool:
    """Whether energy came from nowhere: heat conduction only ever loses it."""
    energy = history[:, ENERGY]
    return not (energy[1:] <= energy[:-1]).all()  # not so for NaN either


def read_history(task: Task) -> plate.Array:
    """What the mini-app has written so far, a row for each time; its last line may be half written."""
    if not task.stdout_exists():
        return np.empty((0, 5))
    lines = task.read_stdout().split("\n")[:-1]
    return np.array([line.split() for line in lines if not line.startswith("#")], dtype=float).reshape(-1, 5)
