"""Corrections for many features and many comparisons."""

import math

import numpy as np
from numpy.typing import NDArray


def benjamini_hochberg(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """q-values of p-values (Benjamini and Hochberg 1995). NaN stays NaN and does not count."""
    q = np.where(np.isnan(p), np.nan, 1.0)
    below = np.flatnonzero(p < 1)  # p-values of 1, nearly all, come last and stay 1
    order = below[np.argsort(p[below])]
    scaled = p[order] * np.count_nonzero(~np.isnan(p)) / np.arange(1, len(order) + 1)
    q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return q


def spending(comparison: int) -> float:
    """Share of the false discovery rate that the t-th comparison of a lineage may use: 0.59 / (t (1 + ln t)^2).

    The shares of all t >= 1 sum to 1 (alpha spending). If nothing ever changes, the probability of q <= level in a
    comparison is at most its level (Benjamini and Hochberg 1995), so over the whole lineage it is at most the policy's
    `fdr`. The hundredth comparison still has 1/5,000 of it; features that are really gone have q-values of 1e-10.
    """
    return 0.59 / (comparison * (1 + math.log(comparison)) ** 2)
