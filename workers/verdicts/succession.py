"""Who fires in the place of a feature that weakened."""

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

LEAST_COFIRING = 0.2
"""Share of a predecessor's activation that a successor must fire on to be named at all."""
LEAST_LIFT = 5.0
"""It must fire there so many times more often than anywhere."""


def cofiring(
    code: scipy.sparse.csr_matrix, weakened: NDArray[np.int64], candidates: NDArray[np.int64]
) -> dict[int, dict[int, float]]:
    """Weakened column -> candidate column -> share of the weakened one's activation where the candidate fires.

    code: [n, m] CSR. A candidate must fire there far more often than anywhere: a feature that fires everywhere is no
    successor.
    """
    if not len(weakened) or not len(candidates):
        return {}
    columns = code.tocsc()
    old = columns[:, weakened]
    fires = columns[:, candidates].copy()
    fires.data = np.ones_like(fires.data)
    activation = np.asarray(old.sum(0)).ravel()
    share = np.asarray((old.T @ fires).todense(), dtype=np.float64) / np.maximum(activation[:, None], 1e-12)
    rate = np.asarray(fires.mean(0)).ravel()
    named = (share >= LEAST_COFIRING) & (share >= LEAST_LIFT * rate[None, :])
    return {
        int(column): {int(candidates[j]): float(share[i, j]) for j in np.flatnonzero(named[i])}
        for i, column in enumerate(weakened)
        if named[i].any()
    }
