"""The simulation function: the mini-app for one pair of diffusivities, watched while it runs."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import plate
from libensemble.executors.executor import TimeoutExpired
from libensemble.message_numbers import TASK_FAILED, WORKER_DONE, WORKER_KILL, WORKER_KILL_ON_ERR

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
        workdir=f"{user['workdir']}/sim{libE_info['H_rows'][0]:04}",
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


def watch(task: Any, executor: Any) -> int:
    """Wait for the end of the task, or end it: when the manager says so, and when it diverges. The calc status."""
    reason = None
    while not task.finished and not reason:
        with suppress(TimeoutExpired):
            task.wait(timeout=LOOK_EVERY)
        reason = WORKER_KILL_ON_ERR if diverges(read_history(task)) else executor.manager_poll()
    if not task.finished:
        task.kill()
    if task.state == "USER_KILLED":
        return int(reason or WORKER_KILL)
    return int(TASK_FAILED if task.state != "FINISHED" or diverges(read_history(task)) else WORKER_DONE)


def diverges(history: plate.Array) -> bool:
    """Whether energy came from nowhere: heat conduction only ever loses it."""
    energy = history[:, ENERGY]
    return not bool((energy[1:] <= energy[:-1]).all())  # not so for NaN either


def read_history(task: Any) -> plate.Array:
    """What the mini-app has written so far, a row for each time.

    Its last line may be half written. Where it was started again, because its allocation had ended, it begins anew.
    """
    if not task.stdout_exists():
        return np.empty((0, 5))
    _, _, text = task.read_stdout().rpartition("#")
    lines = text.split("\n")[1:-1]  # without the headings
    return np.array([line.split() for line in lines], dtype=float).reshape(-1, 5)
