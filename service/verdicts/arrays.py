"""Conversion between stored arrays, indexed by feature number, and those of a judgement, by column of a code."""

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray


def by_number(values: NDArray[np.floating], numbers: NDArray[np.int64]) -> NDArray[np.float32]:
    """Values [..., m] of the features `numbers` [m] -> [..., highest number + 1], NaN for other numbers."""
    length = int(numbers.max()) + 1 if len(numbers) else 0
    spread = np.full((*values.shape[:-1], length), np.nan, dtype=np.float32)
    spread[..., numbers] = values
    return spread


def by_column(stored: NDArray[np.float32], numbers: NDArray[np.int64]) -> NDArray[np.float32]:
    """The inverse, for any features: [..., l] -> [..., m], NaN for numbers past the end of the array."""
    length = stored.shape[-1]
    if not length:
        return np.full((*stored.shape[:-1], len(numbers)), np.nan, dtype=np.float32)
    picked = np.take(stored, numbers, axis=-1, mode="clip")
    picked[..., numbers >= length] = np.nan
    return picked


def positions_of(ordered: NDArray[np.integer], some: Sequence[int]) -> NDArray[np.int64]:
    """Positions of numbers in an ascending array, in the order of `some`; -1 for missing ones."""
    wanted = np.array(some, dtype=np.int64)
    if not len(ordered):
        return np.full(len(wanted), -1)
    positions = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    return np.where(ordered[positions] == wanted, positions, -1)


def among(numbers: NDArray[np.int64], some: Collection[int]) -> NDArray[np.bool_]:
    """[m] whether each feature is in `some`. Uses a flag per number: `np.isin` would sort all of them."""
    flags = np.zeros(int(max(numbers.max(initial=-1), max(some, default=-1))) + 1, dtype=bool)
    flags[list(some)] = True
    members: NDArray[np.bool_] = flags[numbers]
    return members
