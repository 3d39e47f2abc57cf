"""SQL of calibrations, which are runs of the kind `calibrate`."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from featurewatch.service.kit.pages import SortKey, keyset
from featurewatch.service.models import Run
from featurewatch.service.runs import queries as runs
from featurewatch.service.runs.kinds import RunKind
from featurewatch.service.runs.states import RunState


def page(
    session: Session, family: str, *, after: Sequence[Any] | None, limit: int
) -> Sequence[tuple[Run, str, str | None]]:
    """(run, family, checkpoint) of calibrations, newest first; one row more than `limit` if there are more."""
    keys = [SortKey(Run.created_at, descending=True), SortKey(Run.id, descending=True)]
    statement = runs.listing(family=family).where(Run.kind == RunKind.CALIBRATE)
    return [(row[0], row[1], row[2]) for row in session.execute(keyset(statement, keys, after, limit))]


def one(session: Session, family: str, run_id: str) -> tuple[Run, str, str | None] | None:
    """(run, family, checkpoint) of one calibration of a family."""
    statement = runs.listing(family=family).where(Run.kind == RunKind.CALIBRATE, Run.id == run_id)
    row = session.execute(statement).one_or_none()
    return None if row is None else (row[0], row[1], row[2])


def latest(session: Session, family_ids: Sequence[str]) -> dict[str, Run]:
    """Family id -> its latest successful calibration."""
    order = func.row_number().over(partition_by=Run.family_id, order_by=(Run.finished_at.desc(), Run.id.desc()))
    ranked = (
        select(Run.id, order.label("place"))
        .where(Run.family_id.in_(family_ids), Run.kind == RunKind.CALIBRATE, Run.state == RunState.SUCCEEDED)
        .subquery()
    )
    newest = session.scalars(select(Run).join(ranked, (ranked.c.id == Run.id) & (ranked.c.place == 1)))
    return {run.family_id: run for run in newest}
