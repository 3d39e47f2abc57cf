"""Tables of verdicts: what is found, chosen and put in order is what rows one by one would give."""

import numpy as np
import pytest

from featurewatch.service.features.sorting import Order, least_change, order_of
from featurewatch.service.verdicts.figures import FLOAT_COLUMNS
from featurewatch.service.verdicts.statuses import Status
from featurewatch.service.verdicts.table import Table

M = 200


@pytest.fixture
def table() -> Table:
    """Features of every status; many ties, many without figures."""
    rng = np.random.default_rng(0)
    figures = {
        name: np.where(rng.random(M) < 0.3, np.nan, rng.choice([0.0, 0.004, 0.3, 1.0, 2.5, 300.0], M))
        for name in FLOAT_COLUMNS
    }
    figures |= {"change": rng.choice([0.0, 1.0], M), "firing_rate": rng.random(M), "firings": rng.integers(0, 5, M)}
    numbers = np.sort(rng.choice(1000, M, replace=False))
    statuses = rng.integers(0, len(Status), M).astype(np.int8)
    return Table(numbers, statuses, figures, statuses - 1, {3: [{"id": "F1"}]})


def test_rows(table: Table) -> None:
    rows = table.rows()
    assert [row.feature for row in rows] == table.numbers.tolist()
    assert rows[3].successors == [{"id": "F1"}] and rows[4].successors == []
    assert {row.previous_status for row in rows if row.status == "present"} == {None}
    for name in FLOAT_COLUMNS:
        np.testing.assert_array_equal([getattr(row, name) for row in rows], [*map(_none, table.figures[name])])
    assert table.rows([7, 3]) == [rows[7], rows[3]]


def test_find(table: Table) -> None:
    missing = next(number for number in range(1001) if number not in table.numbers)
    found = table.find([int(table.numbers[5]), missing, 5000, int(table.numbers[0])])
    assert found.tolist() == [5, -1, -1, 0]
    nothing = Table(np.zeros(0, np.int64), np.zeros(0, np.int8), {})
    assert nothing.find([1]).tolist() == [-1]


def test_counts_and_groups(table: Table) -> None:
    rows = table.rows()
    assert table.counts == {name: sum(row.status == name for row in rows) for name in Status}
    wanted = {"absent", "emerged"}
    assert table.having(wanted).tolist() == [place for place, row in enumerate(rows) if row.status in wanted]
    assert table.having([]).tolist() == list(range(M))


@pytest.mark.parametrize("direction", ["asc", "desc"])
@pytest.mark.parametrize("name", ["id", "change", "projection_ratio", "q_value", "firings", "least_change"])
def test_order_is_that_of_the_sort_values(table: Table, name: str, direction: str) -> None:
    order: Order = order_of(name, direction)  # type: ignore[arg-type]
    rows, places = table.rows(), np.arange(0, M, 2)
    sign = -1 if direction == "desc" else 1
    wanted = sorted(
        places.tolist(), key=lambda place: (sign * order.values(rows[place])[0], *order.values(rows[place])[1:])
    )
    assert order.first(table, places, None, M).tolist() == wanted
    assert order.first(table, places, None, 7).tolist() == wanted[:7]
    for cut in (0, 10, 60):
        after = list(order.values(rows[wanted[cut]]))
        assert order.first(table, places, after, 5).tolist() == wanted[cut + 1 : cut + 6]


def test_every_kind_of_change_is_met(table: Table) -> None:
    assert {least_change(row) for row in table.rows()} >= {1.0, 100.0, 2.5}


def _none(value: float) -> float | None:
    return None if np.isnan(value) else value
