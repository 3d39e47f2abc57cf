"""Plots as tables: shown on the page, downloaded as CSV, and drawn by the page's script from the shown table."""

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
"""Text that a spreadsheet may evaluate: leading whitespace is skipped and full-width signs count as plain ones."""


@dataclass(frozen=True)
class Plot:
    """The data of a plot. The script draws each kind; `options` tell it what the columns mean."""

    name: str
    """Name of the CSV file; unique on its page."""
    kind: Literal["counts", "statuses", "lines", "trajectory", "flow", "table"]
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    links: Sequence[str] = ()
    """The link of each row; empty for none."""
    options: dict[str, Any] = field(default_factory=dict)
    drawn: bool = True
    """False if there is too little data to draw; then only the table is shown."""

    @property
    def numeric(self) -> list[bool]:
        """Whether each column holds numbers."""
        return [any(isinstance(row[at], int | float) for row in self.rows) for at in range(len(self.columns))]


def parents(rows: Sequence[Sequence[Cell]], names: Sequence[str | None]) -> list[int | None]:
    """Index of each row's parent, None if it has no row. names: the parent of each row."""
    indices = {row[0]: index for index, row in enumerate(rows)}
    return [None if name is None else indices.get(name) for name in names]


def csv_response(plots: Sequence[Plot], name: str) -> Response:
    """The data of one plot as a CSV file; 404 if the page has no such plot."""
    for plot in plots:
        if plot.name == name:
            return as_csv(name, plot.columns, plot.rows)
    raise NotFoundError(f"This page has no plot {name!r}.", code="unknown-plot")


def as_csv(name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Response:
    """A CSV file."""
    return Response(csv_text([columns, *rows]), media_type=CSV, headers=csv_headers(name))


def csv_headers(name: str) -> dict[str, str]:
    """Headers that make a browser save the response as a file."""
    return {"Content-Disposition": f'attachment; filename="{name}.csv"', "Cache-Control": "private, no-cache"}


def csv_text(rows: Iterable[Sequence[Cell]]) -> str:
    """Rows of a CSV file (RFC 4180). Text that a spreadsheet would evaluate as a formula is prefixed with `'`."""
    text = io.StringIO()
    csv.writer(text).writerows([_safe(cell) for cell in row] for row in rows)
    return text.getvalue()


def _safe(cell: Cell) -> Cell:
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell
