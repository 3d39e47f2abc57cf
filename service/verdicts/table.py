"""Verdicts of many features as columns: what is chosen, counted and sorted of tens of thousands at once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurewatch.service.verdicts.arrays import places_of
from featurewatch.service.verdicts.figures import numbers_of
from featurewatch.service.verdicts.statuses import BY_CODE, N_CODES, Status


@dataclass(slots=True)
class Row:
    """A verdict that was computed on request, with the attributes of `service.models.Verdict`."""

    feature: int
    status: str
    previous_status: str | None
    change: float
    projection_ratio: float | None
    projection_ratio_lo: float | None
    projection_ratio_hi: float | None
    strength_ratio: float | None
    strength_ratio_lo: float | None
    strength_ratio_hi: float | None
    orthogonal_ratio: float | None
    q_value: float | None
    strength: float | None
    direction_cosine: float | None
    readability: float | None
    firing_rate: float
    firings: int
    minimum_detectable_ratio: float | None
    successors: list[Any]


@dataclass(frozen=True)
class Table:
    """[m] each, features in order of their numbers."""

    numbers: NDArray[np.int64]
    statuses: NDArray[np.int8]
    """codes of the statuses"""
    firings: NDArray[np.int64]
    floats: dict[str, NDArray[np.floating]]
    """columns of `Row`, NaN for None; of stored verdicts those alone that lists are chosen and sorted by"""
    previous: NDArray[np.int8] = field(default_factory=lambda: np.zeros(0, dtype=np.int8))
    """codes of the statuses at the baseline, -1: none"""
    successors: dict[int, list[Any]] = field(default_factory=dict)
    """place -> the successors, where there are any"""

    @property
    def nbytes(self) -> int:
        """What the columns take in memory."""
        columns: list[NDArray[Any]] = [self.numbers, self.statuses, self.firings, *self.floats.values()]
        return sum(column.nbytes for column in columns)

    @cached_property
    def _groups(self) -> dict[Status, NDArray[np.int64]]:
        """Places of the features by status."""
        return {status: np.flatnonzero(self.statuses == status.code) for status in Status}

    @property
    def counts(self) -> dict[str, int]:
        """Status -> how many features have it; of those that any has."""
        return {status.value: len(group) for status, group in self._groups.items() if len(group)}

    def having(self, statuses: Iterable[str]) -> NDArray[np.int64]:
        """Places of the features with one of some statuses, ascending."""
        chosen = [Status(status) for status in statuses]
        if len(chosen) == 1:
            return self._groups[chosen[0]]
        wanted = np.full(N_CODES, not chosen)
        wanted[[status.code for status in chosen]] = True
        return np.flatnonzero(wanted[self.statuses])

    def rows(self, places: Sequence[int] | None = None) -> list[Row]:
        """Rows at some places, or all of them. The table must have every column of `Row`."""
        at = slice(None) if places is None else np.asarray(places, dtype=np.int64)
        chosen = range(len(self.numbers)) if places is None else places
        columns: dict[str, list[Any]] = {name: numbers_of(column[at]) for name, column in self.floats.items()} | {
            "feature": self.numbers[at].tolist(),
            "status": [BY_CODE[code].value for code in self.statuses[at].tolist()],
            "previous_status": [BY_CODE[code].value if code >= 0 else None for code in self.previous[at].tolist()],
            "firings": self.firings[at].tolist(),
            "successors": [self.successors.get(place, []) for place in chosen],
        }
        # Tens of thousands of rows: by place, not by name.
        return [Row(*values) for values in zip(*(columns[name] for name in Row.__slots__), strict=True)]

    def find(self, numbers: Sequence[int]) -> NDArray[np.int64]:
        """Places of some features, in the order of `numbers`; -1 for those that are not there."""
        return places_of(self.numbers, numbers)
