"""Who fires in the place of a feature that weakened."""

from typing import NamedTuple

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

LEAST_COFIRING = 0.2
"""Share of a predecessor's activation that a successor must fire on to be named at all."""
LEAST_LIFT = 5.0
"""It must fire there so many times more often than anywhere."""


class Share(NamedTuple):
    """What a candidate carries of a weakened feature."""

    cofiring: float
    """share of the weakened one's activation that falls on positions where the candidate fires"""
    strength: float
    """what the candidate writes there, over what the weakened one wrote before (roots of sums of f^2 ||d||^2)"""


def shares(
    code: scipy.sparse.csr_matrix,
    weakened: NDArray[np.int64],
    candidates: NDArray[np.int64],
    norm_before: NDArray[np.float32],
    norm_now: NDArray[np.float32],
) -> dict[int, dict[int, Share]]:
    """Weakened column -> candidate column -> what it carries.

    code: [n, m] CSR; norm_before, norm_now: [m] norms of decoder rows at the baseline and here. A candidate must fire
    there far more often than anywhere: a feature that fires everywhere is no successor.
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
