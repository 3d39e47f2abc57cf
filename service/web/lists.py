"""Full feature lists as CSV, streamed in pieces that hold neither the whole list nor a database connection."""

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from operator import attrgetter
from typing import Annotated, Any

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from featurewatch.service.families import logic as families
from featurewatch.service.features import logic
from featurewatch.service.features.logic import Comparison
from featurewatch.service.features.parameters import Selection, SelectionQuery
from featurewatch.service.features.schemas import FeatureRow, Point
from featurewatch.service.kit.sessions import database_of
from featurewatch.service.kit.turns import Turns
from featurewatch.service.verdicts.figures import FIGURES, Figure
from featurewatch.service.web.plots import CSV, Cell, csv_headers, csv_text


async def _selection(selection: SelectionQuery) -> Selection:
    wanted = replace(selection.wanted, q=selection.wanted.q or None, tag=selection.wanted.tag or None)
    return replace(selection, wanted=wanted)


FormSelection = Annotated[Selection, Depends(_selection)]
"""The features that a filter form asks for. Empty fields filter nothing."""
NAME = "features"
ROWS_PER_PIECE = 1000


def _end(figure: Figure, position: int) -> Callable[[Point], Cell]:
    """One end of a figure's interval."""
    return lambda point: (getattr(point, f"{figure.name}_ci") or (None, None))[position]


FIGURE_COLUMNS: dict[str, Callable[[Point], Cell]] = {
    label: _end(figure, position - 1) if position else attrgetter(figure.name)
    for figure in FIGURES
    for position, label in enumerate(figure.labels)
}
"""Label -> cell, of the figures of a verdict and the ends of their intervals."""
_COLUMNS: dict[str, Callable[[FeatureRow], Cell]] = {
    "feature": lambda row: row.id,
    "checkpoint": lambda row: row.checkpoint,
    "against": lambda row: row.baseline,
    "status": lambda row: row.status,
    "status before": lambda row: row.previous_status,
    "places": lambda row: row.places,
    **FIGURE_COLUMNS,
    "label": lambda row: row.label or row.auto_label,
    "top tokens": lambda row: " ".join(row.top_tokens),
    "tags": lambda row: " ".join(row.tags),
    "watched": lambda row: "yes" if row.watched else "no",
    "rewired": lambda row: None if row.rewired is None else "yes" if row.rewired else "no",
    "successors": lambda row: " ".join(successor.id for successor in row.successors),
}


def as_file(request: Request, comparison: Comparison, selection: Selection) -> Response:
    """All selected features of a comparison as a CSV file. Each piece waits for its turn to compute."""
    wanted, order = selection.wanted, selection.order
    turns: Turns = request.app.state.turns
    read = database_of(request).read
    family, checkpoint = comparison.family.name, comparison.checkpoint.name
    baseline = comparison.baseline.name if comparison.baseline else None

    def piece(after: list[Any] | None) -> tuple[str, list[Any] | None]:
        """The rows after some sort values as text, and the sort values of the last one; None if no row follows."""
        with read() as session:
            current = logic.comparison(session, families.get(session, family), checkpoint, baseline)
            verdicts = logic.rows(session, current, wanted=wanted, order=order, after=after, limit=ROWS_PER_PIECE)
            rows = logic.shown(session, current, (verdict.feature for verdict in verdicts[:ROWS_PER_PIECE]))
        text = csv_text([cell(row) for cell in _COLUMNS.values()] for row in rows.values())
        return text, list(order.values(verdicts[ROWS_PER_PIECE - 1])) if len(verdicts) > ROWS_PER_PIECE else None

    async def pieces() -> AsyncIterator[str]:
        yield csv_text([[*_COLUMNS]])
        after, more = None, True
        while more:
            async with turns.computing:
                text, after = await run_in_threadpool(piece, after)
            more = after is not None
            yield text

    return StreamingResponse(pieces(), media_type=CSV, headers=csv_headers(NAME))
