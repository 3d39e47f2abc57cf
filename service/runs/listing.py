"""Pages of runs, of their attempts and of their logs, for the API and the pages."""

from sqlalchemy.orm import Session

from featurewatch.service.kit.pages import Page, Pager, SortKey, newest_first
from featurewatch.service.models import Attempt, LogLine, Run
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
    statement = queries.listing(family=family, state=state, checkpoint=checkpoint)
    return paging.fetch(session, statement, newest_first(Run), order, view)


def attempts(session: Session, paging: Pager, run: Run) -> Page[AttemptView]:
    """Attempts at a run, oldest first."""
    keys = [SortKey(Attempt.number)]
    return paging.fetch(session, queries.attempts(run.id), keys, "attempts", lambda row: attempt_view(row, run))


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
    statement = queries.lines(run.id, attempt=attempt, levels=level.and_above, beyond=after)
    return paging.fetch(session, statement, [SortKey(LogLine.number)], order, line_view)
