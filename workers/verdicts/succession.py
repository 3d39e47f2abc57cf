"""Successors: features that fire in place of one that weakened."""

from typing import NamedTuple

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

LEAST_COFIRING = 0.2
"""Minimum share of a predecessor's activation at positions where a successor fires."""
LEAST_LIFT = 5.0
"""Minimum ratio of that share to the successor's overall firing rate."""


class Share(NamedTuple):
    """How much of a weakened feature a candidate takes over."""

    cofiring: float
    """Share of the weakened feature's activation at positions where the candidate fires"""
    strength: float
    """What the candidate writes there, over what the weakened feature wrote before (roots of sums of f^2 ||d||^2)"""


def shares(
    code: scipy.sparse.csr_matrix,
    weakened: NDArray[np.int64],
    candidates: NDArray[np.int64],
    norm_before: NDArray[np.float32],
    norm_now: NDArray[np.float32],
) -> dict[int, dict[int, Share]]:
    """Weakened column -> candidate column -> its share.

    code: [n, m] CSR. norm_before, norm_now: [m] norms of decoder rows at the baseline and now. A candidate must fire
    there far more often than elsewhere: a feature that fires everywhere is not a successor.
    """
    if not len(weakened) or not len(candidates):
        return {}
    columns = code.tocsc()
    old = columns[:, weakened]
    new = columns[:, candidates]
    fires = new.astype(bool).astype(np.float32)
    activation = np.asarray(old.sum(0)).ravel()
    share = np.asarray((old.T @ fires).todense(), dtype=np.float64) / np.maximum(activation[:, None], 1e-12)
    rate = np.asarray(fires.mean(0)).ravel()
    written = np.asarray((old.astype(bool).astype(np.float32).T @ new.multiply(new)).todense(), dtype=np.float64)
    wrote = np.asarray(old.multiply(old).sum(0)).ravel() * norm_before[weakened] ** 2
    strength = np.sqrt(written * norm_now[candidates][None, :] ** 2 / np.maximum(wrote[:, None], 1e-12))
    named = (share >= LEAST_COFIRING) & (share >= LEAST_LIFT * rate[None, :])
    return {
        int(column): {
            int(candidates[j]): Share(float(share[i, j]), float(strength[i, j])) for j in np.flatnonzero(named[i])
        }
        for i, column in enumerate(weakened)
        if named[i].any()
    }
