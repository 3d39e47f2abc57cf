"""How well a label separates passages where a feature fires from others."""

import math
from typing import NamedTuple

Z = 1.959964  # of a 95% interval
LEAST = 2
"""Minimum examples of each kind for a score."""


class Score(NamedTuple):
    """Balanced accuracy with a 95% interval; 0.5 is chance."""

    value: float
    low: float
    high: float


def balanced_accuracy(fires: list[bool], answer: list[bool]) -> Score | None:
    """Score of an answer against the truth `fires`; None with fewer than LEAST examples of a kind.

    The interval of the mean of two independent shares combines their Wilson (1927) intervals (Newcombe 1998, method 10,
    with a sum in place of the difference).
    """
    pairs = list(zip(fires, answer, strict=True))
    kinds = [[guess == truth for truth, guess in pairs if truth == kind] for kind in (True, False)]
    if min(map(len, kinds)) < LEAST:
        return None
    shares = [sum(right) / len(right) for right in kinds]
    ends = [wilson(sum(right), len(right)) for right in kinds]
    value = sum(shares) / 2
    below = math.hypot(*(share - low for share, (low, _) in zip(shares, ends, strict=True))) / 2
    above = math.hypot(*(high - share for share, (_, high) in zip(shares, ends, strict=True))) / 2
    return Score(value, max(0.0, value - below), min(1.0, value + above))


def wilson(right: int, of: int) -> tuple[float, float]:
    """Wilson's score interval of a share."""
    share, square = right / of, Z * Z / of
    middle = (share + square / 2) / (1 + square)
    half = Z / (1 + square) * math.sqrt(share * (1 - share) / of + square / (4 * of))
    return middle - half, middle + half
