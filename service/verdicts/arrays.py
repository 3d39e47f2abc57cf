"""Stored arrays are by feature number, those of a judgement by column of a code: there and back."""

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray


def by_number(values: NDArray[np.floating], numbers: NDArray[np.int64]) -> NDArray[np.float32]:
    """Values [..., m] of the features `numbers` [m] -> [..., highest number + 1], NaN where there is no feature."""
    length = int(numbers.max()) + 1 if len(numbers) else 0
    spread = np.full((*values.shape[:-1], length), np.nan, dtype=np.float32)
    spread[..., numbers] = values
    return spread


def by_column(stored: NDArray[np.float32], numbers: NDArray[np.int64]) -> NDArray[np.float32]:
    """The inverse for any features: [..., l] -> [..., m], NaN for those that the array does not reach."""
    length = stored.shape[-1]
    if not length:
        return np.full((*stored.shape[:-1], len(numbers)), np.nan, dtype=np.float32)
    picked = np.take(stored, numbers, axis=-1, mode="clip")
    picked[..., numbers >= length] = np.nan
    return picked


def places_of(ordered: NDArray[np.integer], some: Sequence[int]) -> NDArray[np.int64]:
    """Where some numbers are in ascending ones, in the order of `some`; -1 for those that are not there."""
    wanted = np.array(some, dtype=np.int64)
    if not len(ordered):
        return np.full(len(wanted), -1)
    places = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    return np.where(ordered[places] == wanted, places, -1)


def among(numbers: NDArray[np.int64], some: Collection[int]) -> NDArray[np.bool_]:
    """[m] which features are among some. By a flag for each number: `np.isin` sorts all of them."""
    flags = np.zeros(int(max(numbers.max(initial=-1), max(some, default=-1))) + 1, dtype=bool)
    flags[list(some)] = True
    found: NDArray[np.bool_] = flags[numbers]
    return found
