"""Pages of runs, of their attempts and of their logs, for the API and the pages."""

from sqlalchemy.orm import Session

from featurewatch.service.kit.pages import Page, Pager
from featurewatch.service.models import Run
from featurewatch.service.runs import queries
from featurewatch.service.runs.schemas import AttemptView, Level, LogLineView, RunView, attempt_view, line_view, view
from featurewatch.service.runs.states import RunState


def runs(
    session: Session,
    paging: Pager,
    *,
    family: str | None = None,
    state: RunState | None = None,
    checkpoint: str | None = None,
) -> Page[RunView]:
    """Runs that match every given filter, newest first."""
    order = f"runs {family} {state} {checkpoint}"
    rows = queries.page(
        session, family=family, state=state, checkpoint=checkpoint, after=paging.after(order), limit=paging.limit
    )
    rows, cursor = paging.page(rows, order, lambda row: (row[0].created_at, row[0].id))
    return Page(data=[view(*row) for row in rows], next_cursor=cursor)


def attempts(session: Session, paging: Pager, run: Run) -> Page[AttemptView]:
    """Attempts at a run, oldest first."""
    rows = queries.attempts(session, run.id, after=paging.after("attempts"), limit=paging.limit)
    rows, cursor = paging.page(rows, "attempts", lambda row: (row.number,))
    return Page(data=[attempt_view(row, run) for row in rows], next_cursor=cursor)


def log(
    session: Session,
    paging: Pager,
    run: Run,
    *,
    attempt: int | None = None,
    level: Level = Level.INFO,
    after: int = 0,
) -> Page[LogLineView]:
    """Log lines of a run, oldest first, of `level` or more severe, and after the number `after`."""
    order = f"log {attempt} {level} {after}"
    rows = queries.lines(
        session,
        run.id,
        attempt=attempt,
        levels=level.and_above,
        beyond=after,
        after=paging.after(order),
        limit=paging.limit,
    )
    rows, cursor = paging.page(rows, order, lambda row: (row.number,))
    return Page(data=[line_view(row) for row in rows], next_cursor=cursor)
