"""Orders of feature lists: the same keys for rows of the database and for rows of a comparison."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, and_, case, func

from featurewatch.service.kit.pages import SortKey
from featurewatch.service.models import Verdict
from featurewatch.service.verdicts.figures import FIGURES, Direction
from featurewatch.service.verdicts.statuses import Status
from featurewatch.service.verdicts.table import Table, VerdictRow


class _Sort(NamedTuple):
    natural: Direction
    """Which end comes first where a request does not say: large changes, what shrank, what fires often."""
    title: str
    missing: bool
    """Whether features may lack the value."""


SORTS = {
    figure.name: _Sort(figure.sort, figure.sort_title or figure.label, not figure.required) for figure in FIGURES
} | {"id": _Sort("asc", "id", missing=False), "least_change": _Sort("desc", "largest certain change", missing=False)}
"""Sort name -> how features are sorted by it."""
if TYPE_CHECKING:
    SortName = str
else:
    SortName = Literal[tuple(SORTS)]

_FARTHEST = 1e308
"""Stands for a missing value, which goes last in either direction."""
_MOST = 100.0
"""Factor beyond which changes are alike, as in the judge; what emerged has it too."""


@dataclass(frozen=True)
class Order:
    """A sort name and a direction; ties go by the feature's number."""

    name: SortName
    direction: Direction

    @property
    def descending(self) -> bool:
        """Whether larger values come first."""
        return self.direction == "desc"

    def keys(self) -> list[SortKey]:
        """Sort keys over the verdict table."""
        number = SortKey(Verdict.feature, descending=self.descending if self.name == "id" else False)
        if self.name == "id":
            return [number]
        column: Any = _least_change_column() if self.name == "least_change" else getattr(Verdict, self.name)
        if SORTS[self.name].missing:
            column = func.coalesce(column, self._missing)
        return [SortKey(column, self.descending), number]

    def values(self, row: VerdictRow) -> tuple[Any, ...]:
        """A row's sort values, for cursors."""
        if self.name == "id":
            return (int(row.feature),)
        value = least_change(row) if self.name == "least_change" else getattr(row, self.name)
        return (self._missing if value is None else value, int(row.feature))

    def first(
        self, table: Table, places: NDArray[np.int64], after: Sequence[Any] | None, limit: int
    ) -> NDArray[np.int64]:
        """The first of some rows of a table in this order, after a row's sort values. places: of those, ascending."""
        numbers, sign = table.numbers[places], -1 if self.descending else 1
        values = numbers if self.name == "id" else self._values(table, places)
        if after is not None:
            ahead, ties = sign * values > sign * after[0], values == after[0]
            kept = ahead if self.name == "id" else ahead | (ties & (numbers > after[1]))
            places, values = places[kept], values[kept]
        keys = sign * values
        if limit < len(keys):  # tens of thousands, of which a page is wanted
            kept = keys <= np.partition(keys, limit - 1)[limit - 1]
            places, keys = places[kept], keys[kept]
        # Rows are in the order of numbers already, by which ties go.
        return places[np.argsort(keys, kind="stable")[:limit]]

    def _values(self, table: Table, places: NDArray[np.int64]) -> NDArray[np.float64]:
        if self.name == "least_change":
            return least_changes(table, places)
        return np.nan_to_num(table.figures[self.name][places].astype(np.float64), nan=self._missing)

    @property
    def _missing(self) -> float:
        return -_FARTHEST if self.descending else _FARTHEST


def order_of(name: SortName, direction: Direction | None) -> Order:
    """The order of a request; without a direction the one that is natural for the key."""
    return Order(name, direction or SORTS[name].natural)


def least_change(row: VerdictRow) -> float:
    """The smallest factor of change that a feature's interval allows, 1 to 100: effect and certainty in one number.

    1: the interval holds "as before". `least_changes` is the same of a table, `_least_change_column` in SQL.
    """
    low, high = row.projection_ratio_lo, row.projection_ratio_hi
    if low is None or high is None:
        return _MOST if row.status == Status.EMERGED and row.projection_ratio is None else 1.0
    if low > 1:
        return float(min(low, _MOST))
    if high < 1:
        return 1.0 / high if high > 1 / _MOST else _MOST
    return 1.0


def least_changes(table: Table, places: NDArray[np.int64]) -> NDArray[np.float64]:
    """`least_change` of some rows of a table."""
    ratio, low, high = (table.figures[f"projection_ratio{end}"][places] for end in ("", "_lo", "_hi"))
    falls = 1 / np.maximum(high, 1 / _MOST)
    known = ~(np.isnan(low) | np.isnan(high))
    least = np.where(known & (low > 1), np.minimum(low, _MOST), np.where(known & (high < 1), falls, 1.0))
    least[~known & (table.statuses[places] == Status.EMERGED.code) & np.isnan(ratio)] = _MOST
    return least


def _least_change_column() -> ColumnElement[float]:
    low, high = Verdict.projection_ratio_lo, Verdict.projection_ratio_hi
    return case(
        (low > _MOST, _MOST),
        (low > 1, low),
        (high <= 1 / _MOST, _MOST),
        (high < 1, 1.0 / high),
        (and_(Verdict.status == Status.EMERGED, Verdict.projection_ratio.is_(None)), _MOST),
        else_=1.0,
    )
