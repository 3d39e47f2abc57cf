"""Orders of feature lists: the same keys for rows of the database and for rows of a comparison."""

from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import func

from service.features.schemas import VerdictRow
from service.kit.pages import SortKey
from service.models import Verdict

SortName = Literal[
    "change", "id", "projection_ratio", "strength_ratio", "orthogonal_ratio", "strength", "readability",
    "direction_cosine", "q_value", "firing_rate", "firings",
]  # fmt: skip
Direction = Literal["asc", "desc"]

# What one looks for first: large changes, what shrank, what fires often.
_NATURAL: dict[SortName, Direction] = {
    "change": "desc", "id": "asc", "projection_ratio": "asc", "strength_ratio": "asc", "orthogonal_ratio": "desc",
    "strength": "desc", "readability": "desc", "direction_cosine": "asc", "q_value": "asc", "firing_rate": "desc",
    "firings": "desc",
}  # fmt: skip
_FARTHEST = 1e308
"""Stands for a missing value, which goes last in either direction."""
_NEVER_MISSING = ("change", "id", "firing_rate", "firings")


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
        column: Any = getattr(Verdict, self.name)
        if self.name not in _NEVER_MISSING:
            column = func.coalesce(column, self._missing)
        return [SortKey(column, self.descending), number]

    def values(self, row: VerdictRow) -> tuple[Any, ...]:
        """A row's sort values, for cursors."""
        if self.name == "id":
            return (int(row.feature),)
        value = getattr(row, self.name)
        return (self._missing if value is None else value, int(row.feature))

    def rank(self, values: tuple[Any, ...] | list[Any]) -> tuple[Any, ...]:
        """Sort values turned so that a smaller rank comes first."""
        first = -values[0] if self.descending else values[0]
        return (first, *values[1:])

    @property
    def _missing(self) -> float:
        return -_FARTHEST if self.descending else _FARTHEST


def order_of(name: SortName, direction: Direction | None) -> Order:
    """The order of a request; without a direction the one that is natural for the key."""
    return Order(name, direction or _NATURAL[name])
