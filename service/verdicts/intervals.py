"""Intervals of projection ratios, over all hook points or at one of them."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from featurewatch.service.verdicts.policy import Policy

LEAST_CHANGE = 0.1
"""Smallest change for which the code's errors are counted: the neighbours of a feature change too."""


def t_of(folds: int, policy: Policy) -> float:
    """Standard errors between a ratio and each end of its interval."""
    return float(stdtrit(folds - 1, 0.5 + policy.confidence / 2))


def error_of(ratio: NDArray[np.float32], jackknife: NDArray[np.float32], policy: Policy) -> NDArray[np.float32]:
    """Standard error of projection ratios divided by their size factor, any shape.

    Adds the code's errors, which the jackknife does not see because resampled documents share them.
    """
    code = policy.code_error * np.maximum(np.abs(1 - ratio), LEAST_CHANGE)
    error: NDArray[np.float32] = np.sqrt(jackknife**2 + code**2)
    return error


def reach(
    projection: NDArray[np.float32], jackknife: NDArray[np.float32], size: float, folds: int, policy: Policy
) -> NDArray[np.float32]:
    """Distance from measured projections to each end of their intervals, before dividing by the size. Any shape."""
    return abs(size) * t_of(folds, policy) * error_of(projection / size, jackknife / size, policy)
