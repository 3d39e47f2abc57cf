"""How alike two sources are, whatever their bases and widths, and which of them are held against each other."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def procrustes_similarity(x: Tensor, y: Tensor) -> float:
    """Cosine of two sets of centred activations [n, d_x] and [n, d_y] under the best orthonormal map between them.

    `||X' Y||_* / (||X||_F ||Y||_F)`, in 0..1 (Williams et al. 2021: the angle of Procrustes shape distance is its
    arccosine). 1: one is the other, turned and scaled. 0 where one of them does not vary.
    """
    norms = float(x.norm()) * float(y.norm())
    return float(torch.linalg.svdvals(x.T.float() @ y.float()).sum()) / norms if norms > 0 else 0.0


def one_to_one(similarity: np.ndarray, allowed: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (row, column) of the assignment with the largest sum of similarities [r, c]; rows ascending.

    allowed: bool [r, c]; no other pair is made, so there may be fewer than min(r, c), or none.
    """
    rows, columns = linear_sum_assignment(np.where(allowed, similarity, -1e3), maximize=True)
    return [(int(r), int(c)) for r, c in zip(rows, columns, strict=True) if allowed[r, c]]


def same_kind(mine: Sequence[str], theirs: Sequence[str]) -> np.ndarray:
    """bool [r, c]: whether two hook points are of one kind (`resid_post.3` and `resid_post.5` are)."""
    return np.array([[a.partition(".")[0] == b.partition(".")[0] for b in theirs] for a in mine], dtype=bool)
