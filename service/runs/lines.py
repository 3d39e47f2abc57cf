"""The log of a run, written in transactions that hold the run.

Only the first and the last lines of a long log are stored. A line between them says how many were dropped.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy.orm import Session

from featurewatch.service.runs import queries

FIRST, LAST = 1000, 2000
"""Lines stored of a run, from its beginning and its end."""


class Line(NamedTuple):
    """One line of the log."""

    number: int
    """From 1, over all attempts of the run"""
    at: datetime
    level: str
    """info, warning or error"""
    event: str
    fields: dict[str, Any]


def keep(session: Session, *, run_id: str, attempt: int, lines: Sequence[Line]) -> None:
    """Append the lines that are not stored yet. The transaction holds the run, or has just ended the attempt."""
    stored = queries.line_count(session, run_id, attempt)
    new = [] if stored is None else [line._asdict() for line in lines if line.number > stored]
    if not new:
        return
    last = new[-1]["number"]
    queries.add_lines(session, run_id, attempt, new, last)
    if last > FIRST + 1 + LAST:
        dropped = {"lines": last - LAST - FIRST}
        queries.drop_lines(session, run_id, FIRST + 1, last - LAST, event="lines left out", fields=dropped)
