"""Libraries that take any executor, on ours, unchanged."""

from __future__ import annotations

import adaptive
import dask
import emcee
import nevergrad
import numpy as np
from pipefunc import Pipeline, pipefunc
from scipy.optimize import differential_evolution

from balsam_exec import BalsamPoolExecutor
from balsam_exec.embedded import Deployment


def sphere(x: np.ndarray) -> float:
    return float((x**2).sum())


def log_probability(x: np.ndarray) -> float:
    return -0.5 * sphere(x)


@pipefunc(output_name="y", mapspec="x[i] -> y[i]")
def doubled(x: int) -> int:
    return 2 * x


@pipefunc(output_name="total")
def summed(y: np.ndarray) -> int:
    return int(sum(y))


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


def test_adaptive_pipefunc_and_nevergrad(deployment: Deployment) -> None:
    with BalsamPoolExecutor(2) as pool:
        learner = adaptive.Learner1D(lambda x: x**3, bounds=(-1, 1))
        adaptive.BlockingRunner(learner, npoints_goal=9, executor=pool, ntasks=2)
        assert learner.npoints >= 9
        assert learner.data[1] == 1

        pipeline = Pipeline([doubled, summed])
        found = pipeline.map({"x": [1, 2, 3]}, executor=pool, parallel=True, storage="dict", chunksizes=1)
        assert found["total"].output == 12

        optimizer = nevergrad.optimizers.OnePlusOne(parametrization=2, budget=8, num_workers=2)
        best = optimizer.minimize(sphere, executor=pool, batch_mode=False)
        assert optimizer.num_tell == 8
        assert best.value.shape == (2,)
