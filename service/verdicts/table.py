"""The verdicts of a checkpoint as columns: tens of thousands of features are filtered, counted and sorted at once."""

from collections import namedtuple
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featurewatch.service.verdicts.arrays import positions_of
from featurewatch.service.verdicts.columns import values_of
from featurewatch.service.verdicts.figures import COLUMNS
from featurewatch.service.verdicts.statuses import BY_CODE, N_CODES, Status


class VerdictRow(Protocol):
    """A verdict as an object: every column of `figures.COLUMNS`, of which code names these."""

    feature: Any
    status: Any
    previous_status: Any
    change: Any
    projection_ratio: Any
    projection_ratio_lo: Any
    projection_ratio_hi: Any
    successors: Any


@lru_cache(maxsize=16)
def row_type(columns: tuple[str, ...]) -> Any:
    """A named tuple of these columns. Attributes of SQLAlchemy's own rows are looked up by name, which is slower."""
    return namedtuple("Row", columns)


@dataclass(frozen=True)
class Table:
    """[m] each, in the order of feature numbers."""

    numbers: NDArray[np.int64]
    statuses: NDArray[np.int8]
    """codes of the statuses"""
    figures: dict[str, NDArray[Any]]
    """Columns of figures, and `documents`: in how many a feature fires. NaN for None. A table of stored verdicts has
    only those that lists are filtered and sorted by."""
    previous: NDArray[np.int8] = field(default_factory=lambda: np.zeros(0, dtype=np.int8))
    """codes of the statuses at the baseline, -1: none"""
    successors: dict[int, list[Any]] = field(default_factory=dict)
    """position in the table -> successors, if any"""

    @property
    def nbytes(self) -> int:
        """Memory that the columns take."""
        columns: list[NDArray[Any]] = [self.numbers, self.statuses, *self.figures.values()]
        return sum(column.nbytes for column in columns)

    @cached_property
    def _groups(self) -> dict[Status, NDArray[np.int64]]:
        """Positions of the features with each status."""
        return {status: np.flatnonzero(self.statuses == status.code) for status in Status}

    @property
    def counts(self) -> dict[str, int]:
        """Status -> number of features, without zeros."""
        return {status.value: len(group) for status, group in self._groups.items() if len(group)}

    def having(self, statuses: Iterable[str]) -> NDArray[np.int64]:
        """Positions of the features with one of the statuses, ascending; of all features for no statuses."""
        chosen = [Status(status) for status in statuses]
        if len(chosen) == 1:
            return self._groups[chosen[0]]
        wanted = np.full(N_CODES, not chosen)
        wanted[[status.code for status in chosen]] = True
        return np.flatnonzero(wanted[self.statuses])

    def rows(self, positions: Sequence[int] | None = None) -> list[VerdictRow]:
        """Rows at these positions, or all of them. The table must have every figure."""
        at = slice(None) if positions is None else np.asarray(positions, dtype=np.int64)
        chosen = range(len(self.numbers)) if positions is None else positions
        columns: dict[str, list[Any]] = {name: values_of(column[at]) for name, column in self.figures.items()} | {
            "feature": self.numbers[at].tolist(),
            "status": [BY_CODE[code].value for code in self.statuses[at].tolist()],
            "previous_status": [BY_CODE[code].value if code >= 0 else None for code in self.previous[at].tolist()],
            "successors": [self.successors.get(position, []) for position in chosen],
        }
        # Tens of thousands of rows: by position, not by name.
        return list(map(row_type(COLUMNS)._make, zip(*(columns[name] for name in COLUMNS), strict=True)))

    def find(self, numbers: Sequence[int]) -> NDArray[np.int64]:
        """Positions of features, in the order of `numbers`; -1 where the table does not have one."""
        return positions_of(self.numbers, numbers)
