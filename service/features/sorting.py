"""Orders of feature lists, for rows of the database and for rows of a comparison."""

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
    """Which end comes first by default."""
    title: str
    missing: bool
    """Whether features can lack the value."""


SORTS = {
    figure.name: _Sort(figure.sort, figure.sort_title or figure.label, not figure.required) for figure in FIGURES
} | {"id": _Sort("asc", "id", missing=False), "least_change": _Sort("desc", "largest certain change", missing=False)}
"""Sort name -> how features are sorted by it."""
if TYPE_CHECKING:
    SortName = str
else:
    SortName = Literal[tuple(SORTS)]

_FARTHEST = 1e308
"""Replaces a missing value, which comes last in either direction."""
_MOST = 100.0
"""Changes are capped at this factor, as in the judge. Features that emerged have it."""


@dataclass(frozen=True)
class Order:
    """A sort name and a direction. Ties are broken by the feature's number."""

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
        self, table: Table, positions: NDArray[np.int64], after: Sequence[Any] | None, limit: int
    ) -> NDArray[np.int64]:
        """The first `limit` of the rows at `positions`, in this order. after: sort values of the last one."""
        numbers, sign = table.numbers[positions], -1 if self.descending else 1
        values = numbers if self.name == "id" else self._values(table, positions)
        if after is not None:
            ahead, ties = sign * values > sign * after[0], values == after[0]
            mask = ahead if self.name == "id" else ahead | (ties & (numbers > after[1]))
            positions, values = positions[mask], values[mask]
        keys = sign * values
        if limit < len(keys):  # a page of tens of thousands
            mask = keys <= np.partition(keys, limit - 1)[limit - 1]
            positions, keys = positions[mask], keys[mask]
        # Rows are in the order of feature numbers, which breaks ties.
        return positions[np.argsort(keys, kind="stable")[:limit]]

    def _values(self, table: Table, positions: NDArray[np.int64]) -> NDArray[np.float64]:
        if self.name == "least_change":
            return least_changes(table, positions)
        return np.nan_to_num(table.figures[self.name][positions].astype(np.float64), nan=self._missing)

    @property
    def _missing(self) -> float:
        return -_FARTHEST if self.descending else _FARTHEST


def order_of(name: SortName, direction: Direction | None) -> Order:
    """The order of a request, in the natural direction if it names none."""
    return Order(name, direction or SORTS[name].natural)


def least_change(row: VerdictRow) -> float:
    """The smallest factor of change that a feature's interval allows, 1 to 100: effect and certainty in one number.

    1: the interval contains "no change". `least_changes` is the same for a table, `_least_change_column` in SQL.
    """
    low, high = row.projection_ratio_lo, row.projection_ratio_hi
    if low is None or high is None:
        return _MOST if row.status == Status.EMERGED and row.projection_ratio is None else 1.0
    if low > 1:
        return float(min(low, _MOST))
    if high < 1:
        return 1.0 / high if high > 1 / _MOST else _MOST
    return 1.0


def least_changes(table: Table, positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """`least_change` of rows of a table."""
    ratio, low, high = (table.figures[f"projection_ratio{end}"][positions] for end in ("", "_lo", "_hi"))
    falls = 1 / np.maximum(high, 1 / _MOST)
    known = ~(np.isnan(low) | np.isnan(high))
    least = np.where(known & (low > 1), np.minimum(low, _MOST), np.where(known & (high < 1), falls, 1.0))
    least[~known & (table.statuses[positions] == Status.EMERGED.code) & np.isnan(ratio)] = _MOST
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
