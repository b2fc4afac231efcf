"""Libraries that take any executor, on ours, unchanged."""

from __future__ import annotations

import dask
import emcee
import numpy as np
from scipy.optimize import differential_evolution

from balsam_exec import BalsamPoolExecutor
from balsam_exec.embedded import Deployment


def sphere(x: np.ndarray) -> float:
    return float((x**2).sum())


def log_probability(x: np.ndarray) -> float:
    return -0.5 * sphere(x)


def test_dask_scipy_and_emcee(deployment: Deployment) -> None:
    with BalsamPoolExecutor(2) as pool:
        calls = [dask.delayed(pow)(n, 2) for n in range(6)]
        assert dask.compute(*calls, scheduler=pool) == (0, 1, 4, 9, 16, 25)

        found = differential_evolution(
            sphere, [(-2, 2)] * 2, workers=pool.map, updating="deferred", maxiter=3, popsize=5, rng=1
        )
        assert found.fun < 1e-3

        start = np.random.default_rng(1).normal(size=(8, 2))
        sampler = emcee.EnsembleSampler(8, 2, log_probability, pool=pool)
        sampler.run_mcmc(start, 3)
        assert sampler.get_chain().shape == (3, 8, 2)
