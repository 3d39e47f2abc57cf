"""Small planted data: sparse codes, directions, and sources made of them. Everything follows from the seed."""

from dataclasses import dataclass

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from featurewatch.workers.crosscoder.code import Code

torch.set_num_threads(1)


def dense_code(n: int, m: int, rate: float, seed: int) -> np.ndarray:
    """float64 [n, m]: each latent fires at `rate` of the positions, with magnitudes from 0.5 on (mean 1)."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random((n, m)) < rate, 0.5 + rng.exponential(0.5, (n, m)), 0.0).astype(np.float32).astype(float)


def code_of(dense: np.ndarray) -> Code:
    """The code of a dense matrix."""
    return Code.from_scipy(scipy.sparse.csr_matrix(dense))


def directions(m: int, d: int, seed: int) -> np.ndarray:
    """float64 [m, d] random unit rows."""
    rows = np.random.default_rng(seed).standard_normal((m, d))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def rotation(d: int, seed: int) -> np.ndarray:
    """float64 [d, d], a random orthonormal matrix."""
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))[0]


def documents(n: int, length: int) -> Tensor:
    """int64 [n]: documents of equal length, one after the other."""
    return torch.arange(n) // length


@dataclass
class Held:
    """Activations held in memory, read as a checkpoint's are."""

    x: Tensor
    """float32 [n, D]"""
    widths: list[int]

    def __call__(self, rows: Tensor) -> Tensor:
        return self.x[rows]


def held(x: np.ndarray, widths: list[int] | None = None) -> Held:
    """A reader of float32 activations."""
    return Held(torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)), widths or [x.shape[1]])
