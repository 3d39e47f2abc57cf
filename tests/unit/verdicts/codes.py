"""Own codes made of dense matrices."""

import numpy as np
import scipy.sparse

from featurewatch.service.verdicts.activity import OwnCode

THRESHOLD = 0.5
LENGTH = 20
"""Positions of a document"""
FOLDS = 20


def own_code(dense: np.ndarray, valid: np.ndarray | None = None, folds: int = FOLDS) -> OwnCode:
    """The own code [n, m] of documents of LENGTH positions, dealt to folds in turn."""
    n, m = dense.shape
    document = np.arange(n) // LENGTH
    return OwnCode(
        matrix=scipy.sparse.csr_matrix(dense, dtype=np.float32),
        valid=np.ones(n, dtype=bool) if valid is None else valid,
        document=document,
        fold=document % folds,
        threshold=THRESHOLD,
        numbers=np.arange(m),
    )


def active(rng: np.random.Generator, n: int, rates: list[float]) -> np.ndarray:
    """[n, m] activations between 1 and about 3, at these rates: well over the threshold."""
    shape = (n, len(rates))
    return np.where(rng.random(shape) < rates, 1 + rng.exponential(0.3, shape), 0)
