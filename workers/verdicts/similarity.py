"""Similarity of sources with any bases and widths, and the pairing of the most similar ones."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def procrustes_similarity(x: Tensor, y: Tensor) -> float:
    """Cosine of two sets of centred activations [n, d_x] and [n, d_y] under the best orthonormal map between them.

    `||X' Y||_* / (||X||_F ||Y||_F)`, from 0 to 1 (its arccosine is the angular Procrustes distance of Williams et al.
    2021). 1 if one is a rotated and scaled copy of the other; 0 if either is constant.
    """
    norms = float(x.norm()) * float(y.norm())
    return float(torch.linalg.svdvals(x.T.float() @ y.float()).sum()) / norms if norms > 0 else 0.0


def one_to_one(similarity: np.ndarray, allowed: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (row, column) of the assignment with the largest sum of similarities [r, c]; rows ascending.

    allowed: bool [r, c]. Only allowed pairs are returned, so there may be fewer than min(r, c), or none.
    """
    rows, columns = linear_sum_assignment(np.where(allowed, similarity, -1e3), maximize=True)
    return [(int(r), int(c)) for r, c in zip(rows, columns, strict=True) if allowed[r, c]]


def same_kind(mine: Sequence[str], theirs: Sequence[str]) -> np.ndarray:
    """Whether two hook points have the same kind, as `resid_post.3` and `resid_post.5` do: bool [r, c]."""
    return np.array([[a.partition(".")[0] == b.partition(".")[0] for b in theirs] for a in mine], dtype=bool)
