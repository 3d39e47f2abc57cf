"""Plots as numbers: a table that is shown, downloaded as CSV, and drawn by the page's script from what it shows."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.responses import Response

from featurewatch.service.kit.problems import NotFoundError

Cell = str | int | float | None
CSV = "text/csv"
_FORMULA = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u200b-\u200f\u2060\ufeff]*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")
"""What a spreadsheet may calculate: it skips leading whitespace, and takes full-width signs for plain ones."""


@dataclass(frozen=True)
class Plot:
    """What a plot shows. The script knows each kind; `options` say what the numbers are."""

    name: str
    """Of the CSV file; unique on its page."""
    kind: Literal["counts", "statuses", "lines", "trajectory", "flow", "table"]
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    links: Sequence[str] = ()
    """Where each row leads to; empty: nowhere."""
    options: dict[str, Any] = field(default_factory=dict)
    drawn: bool = True
    """False: there is too little to draw, and the table says it all."""

    @property
    def numeric(self) -> list[bool]:
        """Of each column: whether it holds numbers."""
        return [any(isinstance(row[at], int | float) for row in self.rows) for at in range(len(self.columns))]


def parents(rows: Sequence[Sequence[Cell]], names: Sequence[str | None]) -> list[int | None]:
    """Of each row the place of its parent's; None where that is not among them. names: the parents', in order."""
    places = {row[0]: place for place, row in enumerate(rows)}
    return [None if name is None else places.get(name) for name in names]


def csv_response(plots: Sequence[Plot], name: str) -> Response:
    """The numbers of one plot as a CSV file; 404 where the page has none of this name."""
    for plot in plots:
        if plot.name == name:
            return as_csv(name, plot.columns, plot.rows)
    raise NotFoundError(f"This page has no plot {name!r}.", code="unknown-plot")


def as_csv(name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Response:
    """A CSV file."""
    return Response(csv_text([columns, *rows]), media_type=CSV, headers=csv_headers(name))


def csv_headers(name: str) -> dict[str, str]:
    """What makes an answer a file."""
    return {"Content-Disposition": f'attachment; filename="{name}.csv"', "Cache-Control": "private, no-cache"}


def csv_text(rows: Iterable[Sequence[Cell]]) -> str:
    """Rows of a CSV file (RFC 4180). Text that a spreadsheet would take for a formula is quoted."""
    text = io.StringIO()
    csv.writer(text).writerows([_safe(cell) for cell in row] for row in rows)
    return text.getvalue()


def _safe(cell: Cell) -> Cell:
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell
