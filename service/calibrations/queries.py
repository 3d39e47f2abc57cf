"""SQL of calibrations, which are runs of the kind `calibrate`."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from featurewatch.service.models import Run
from featurewatch.service.runs import queries as runs
from featurewatch.service.runs.kinds import RunKind
from featurewatch.service.runs.states import RunState


def of_family(family: str) -> Select[Any]:
    """(run, family, checkpoint) of a family's calibrations."""
    return runs.listing(family=family).where(Run.kind == RunKind.CALIBRATE)


def one(session: Session, family: str, run_id: str) -> tuple[Run, str, str | None] | None:
    """(run, family, checkpoint) of one calibration of a family."""
    return session.execute(of_family(family).where(Run.id == run_id)).one_or_none()


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
