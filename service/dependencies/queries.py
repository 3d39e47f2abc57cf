"""SQL of dependency graphs."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import bindparam, delete, func, select
from sqlalchemy.orm import Session

from featurewatch.service.models import Checkpoint, DependencyGraph, Feature, Run
from featurewatch.service.runs.kinds import RunKind
from featurewatch.service.runs.states import RunState


def one(session: Session, checkpoint_id: str, number: int, method: str | None) -> DependencyGraph | None:
    """The graph of a feature in a checkpoint; the newest one if no method is given."""
    if method is not None:
        return session.get(DependencyGraph, (checkpoint_id, number, method))
    statement = select(DependencyGraph).where(
        DependencyGraph.checkpoint_id == checkpoint_id, DependencyGraph.feature == number
    )
    return session.scalars(statement.order_by(DependencyGraph.created_at.desc(), DependencyGraph.method)).first()


def at_checkpoint(session: Session, checkpoint_id: str) -> list[DependencyGraph]:
    """The newest graph of each feature in a checkpoint, by number."""
    newest = {row.feature: row for row in session.scalars(_AT_CHECKPOINT, {"checkpoint": checkpoint_id})}
    return [newest[number] for number in sorted(newest)]


def newest_checkpoint(session: Session, family_id: str, number: int) -> str | None:
    """Id of the checkpoint with the newest graph of a feature."""
    statement = (
        select(DependencyGraph.checkpoint_id)
        .where(DependencyGraph.family_id == family_id, DependencyGraph.feature == number)
        .order_by(DependencyGraph.created_at.desc())
    )
    return session.scalars(statement).first()


def examined(session: Session, family_id: str, number: int) -> set[tuple[str, str]]:
    """(checkpoint name, method) of each graph of a feature."""
    statement = (
        select(Checkpoint.name, DependencyGraph.method)
        .join(Checkpoint, Checkpoint.id == DependencyGraph.checkpoint_id)
        .where(DependencyGraph.family_id == family_id, DependencyGraph.feature == number)
    )
    return {(row[0], row[1]) for row in session.execute(statement)}


def in_both(session: Session, first: str, second: str, method: str) -> int:
    """Number of features with a graph by this method in both checkpoints."""
    ours, theirs = (
        select(DependencyGraph.feature).where(
            DependencyGraph.checkpoint_id == checkpoint_id, DependencyGraph.method == method
        )
        for checkpoint_id in (first, second)
    )
    return session.scalar(select(func.count()).select_from(ours.intersect(theirs).subquery())) or 0


def put(session: Session, rows: Sequence[dict[str, Any]]) -> None:
    """Write graphs, replacing older ones of the same feature, checkpoint and method."""
    for row in rows:
        session.execute(
            delete(DependencyGraph).where(
                DependencyGraph.checkpoint_id == row["checkpoint_id"],
                DependencyGraph.feature == row["feature"],
                DependencyGraph.method == row["method"],
            )
        )
        session.add(DependencyGraph(**row))
    session.flush()


# Built once: every report runs it.
_AT_CHECKPOINT = (
    select(DependencyGraph)
    .where(DependencyGraph.checkpoint_id == bindparam("checkpoint"))
    .order_by(DependencyGraph.created_at, DependencyGraph.method)
)


def watched(session: Session, family_id: str) -> list[int]:
    """Numbers of a family's watched features that are not retired, ascending."""
    statement = select(Feature.number).where(
        Feature.family_id == family_id, Feature.watched.is_(True), Feature.retired_in.is_(None)
    )
    return sorted(session.scalars(statement))


def waiting(session: Session, checkpoint_id: str) -> bool:
    """Whether a dependencies run is queued for a checkpoint."""
    statement = select(Run.id).where(
        Run.checkpoint_id == checkpoint_id, Run.kind == RunKind.DEPENDENCIES, Run.state == RunState.QUEUED
    )
    return session.scalars(statement).first() is not None
