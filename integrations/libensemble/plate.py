"""The problem: which diffusivities has a plate that was seen to cool like this?

A plate of a fibre composite conducts heat better along the fibres (x) than across them (y). It was heated, its edges
were held at 0, and three thermometers were read while it cooled. The plate of this example is ideal, so that what
they showed is known from the series solution, and the campaign can be seen to find `TRUE`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: The diffusivities along x and y that the campaign is to find.
TRUE = np.array([0.6, 0.25])
#: Where it looks for them.
LOWER, UPPER = np.array([0.02, 0.02]), np.array([1.0, 1.0])
#: The mini-app's time step is stable up to this sum of the two: a longer step is cheaper, and few runs are lost.
STABLE_UP_TO = 1.4
#: The mini-app gives up at this time; the slowest plate in the range needs about 8.
END = 10.0

#: Where the thermometers are, as in heat.c.
PROBES = np.array([[0.25, 0.25], [0.25, 0.5], [0.5, 0.25]])
#: What is compared: when each thermometer had fallen to these fractions of its first temperature.
FRACTIONS = np.array([0.5, 0.2, 0.05])
READINGS = len(PROBES) * len(FRACTIONS)


def time_step(cells: int) -> float:
    """The longest step that is stable for diffusivities which add up to `STABLE_UP_TO`, on cells x cells."""
    return 0.5 / (cells**2 * STABLE_UP_TO)


def measured() -> Array:
    """What the thermometers showed of the real plate, from the series solution, as `cooling_times` gives it."""
    x, y = np.pi * PROBES.T[:, :, None]
    times = np.linspace(0.0, 1.0, 20_001)
    temperatures = np.zeros((len(PROBES), len(times)))
    for amplitude, m, n in ((1.0, 1, 1), (0.5, 2, 1), (0.5, 1, 2)):
        decay = np.exp(-(np.pi**2) * (m**2 * TRUE[0] + n**2 * TRUE[1]) * times)
        temperatures += amplitude * np.sin(m * x) * np.sin(n * y) * decay
    return cooling_times(times, temperatures)


def cooling_times(times: Array, temperatures: Array) -> Array:
    """When each row of `temperatures` had fallen to each of FRACTIONS of its first value.

    Between readings the logarithm is interpolated.
    """
    return np.concatenate([np.interp(-np.log(FRACTIONS), -np.log(row / row[0]), times) for row in temperatures])


def residuals(found: Array, target: Array) -> Array:
    """How far simulated cooling times are from the measured ones, relatively."""
    return np.log(found / target)


def misfit(found: Array, target: Array) -> float:
    """The root mean square of the residuals."""
    return float(np.sqrt(np.mean(residuals(found, target) ** 2)))
