"""SQL of the lineage of features."""

from collections.abc import Sequence

from sqlalchemy import Select, bindparam, func, or_, select
from sqlalchemy.orm import Session

from featurewatch.service.kit.pages import SortKey
from featurewatch.service.models import Checkpoint, Lineage

OLDEST_FIRST = [SortKey(Lineage.generation), SortKey(Lineage.id)]


def links(family_id: str, *, generation: int | None = None, kind: str | None = None) -> Select[Lineage, str]:
    """(link, checkpoint) of a family's re-fits."""
    statement = (
        select(Lineage, Checkpoint.name)
        .join(Checkpoint, Checkpoint.id == Lineage.checkpoint_id)
        .where(Lineage.family_id == family_id)
    )
    if generation is not None:
        statement = statement.where(Lineage.generation == generation)
    if kind is not None:
        statement = statement.where(Lineage.kind == kind)
    return statement


def of_feature(session: Session, family_id: str, number: int) -> Sequence[tuple[Lineage, str]]:
    """(link, checkpoint) of all links from or to a feature, oldest first."""
    statement = links(family_id).where(or_(Lineage.old == number, Lineage.new == number))
    return [(row[0], row[1]) for row in session.execute(statement.order_by(Lineage.generation, Lineage.id))]


def counts(session: Session, checkpoint_id: str) -> dict[str, int]:
    """Link kind -> number of old features in a checkpoint's re-fit; for `new`, the number of new features."""
    return {row[0]: row[1] for row in session.execute(_COUNTS, {"checkpoint": checkpoint_id})}


# Built once: every report runs it.
_COUNTS = (
    select(Lineage.kind, func.count(func.distinct(func.coalesce(Lineage.old, Lineage.new))))
    .where(Lineage.checkpoint_id == bindparam("checkpoint"))
    .group_by(Lineage.kind)
)
