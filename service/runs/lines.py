"""The log of a run: what its workers logged, written in transactions that hold the run.

Bounded: of a long log the first and the last lines are kept, and one between them says how many are gone.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy.orm import Session

from featurewatch.service.runs import queries

FIRST, LAST = 1000, 2000
"""Lines of a run that are kept: how it began, and how it ended."""


class Line(NamedTuple):
    """One line."""

    number: int
    """Of the run, from 1, over its attempts"""
    at: datetime
    level: str
    """info, warning or error"""
    event: str
    fields: dict[str, Any]


def keep(session: Session, *, run_id: str, attempt: int, lines: Sequence[Line]) -> None:
    """Add the lines that are not there yet. The caller's transaction holds the run, or has just ended the attempt."""
    had = queries.line_count(session, run_id, attempt)
    new = [] if had is None else [line._asdict() for line in lines if line.number > had]
    if not new:
        return
    last = new[-1]["number"]
    queries.add_lines(session, run_id, attempt, new, last)
    if last > FIRST + 1 + LAST:
        gone = {"lines": last - LAST - FIRST}
        queries.drop_lines(session, run_id, FIRST + 1, last - LAST, event="lines left out", fields=gone)
