"""A Gaussian process through vector-valued results: all components share one kernel, each has its own scale."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: The length, in units of the range, over which results bend: they are smooth.
LENGTH = 1.0
#: The variance of each result by itself, relative to the function's: hardly any, the runs are deterministic.
NUGGET = 1e-8


class Surrogate:
    """What is known of a function on the unit square, after its `values` (n, m) at `points` (n, 2)."""

    def __init__(self, points: Array, values: Array) -> None:
        self._points = points
        self._centre = values.mean(0)
        self._precision = np.linalg.inv(kernel(points, points) + NUGGET * np.eye(len(points)))
        values = values - self._centre
        self._weights = self._precision @ values
        # The likeliest scale of each component, after one result more that is as far out as the others are.
        explained = (values * self._weights).sum(0)
        self._scales = np.sqrt((explained + values.var(0)) / (len(values) + 1))

    def draw(self, at: Array, random: np.random.Generator) -> Array:
        """One function (k, m) of those that are possible, at the places `at` (k, 2)."""
        across = kernel(at, self._points)
        covariance = kernel(at, at) - across @ self._precision @ across.T
        deviations = random.multivariate_normal(
            np.zeros(len(at)), covariance, size=len(self._scales), method="eigh", check_valid="ignore"
        )
        drawn: Array = self._centre + across @ self._weights + deviations.T * self._scales
        return drawn


def kernel(a: Array, b: Array) -> Array:
    """The covariance between places."""
    apart = ((a[:, None] - b[None]) ** 2).sum(-1)
    return np.asarray(np.exp(-apart / (2 * LENGTH**2)))
