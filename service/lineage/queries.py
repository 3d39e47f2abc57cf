"""SQL of the lineage of features."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Select, bindparam, func, or_, select
from sqlalchemy.orm import Session

from featurewatch.service.kit.pages import SortKey, keyset
from featurewatch.service.models import Checkpoint, Lineage


def page(
    session: Session,
    family_id: str,
    *,
    generation: int | None,
    kind: str | None,
    after: Sequence[Any] | None,
    limit: int,
) -> Sequence[tuple[Lineage, str]]:
    """(link, checkpoint) of a family's re-fits, oldest first; a row more than `limit` where there are more."""
    statement = _links(family_id)
    if generation is not None:
        statement = statement.where(Lineage.generation == generation)
    if kind is not None:
        statement = statement.where(Lineage.kind == kind)
    keys = [SortKey(Lineage.generation), SortKey(Lineage.id)]
    return [(row[0], row[1]) for row in session.execute(keyset(statement, keys, after, limit))]


def of_feature(session: Session, family_id: str, number: int) -> Sequence[tuple[Lineage, str]]:
    """(link, checkpoint) of all re-fits that one feature went through, came from or went into; oldest first."""
    statement = _links(family_id).where(or_(Lineage.old == number, Lineage.new == number))
    return [(row[0], row[1]) for row in session.execute(statement.order_by(Lineage.generation, Lineage.id))]


def counts(session: Session, checkpoint_id: str) -> dict[str, int]:
    """Kind -> how many features of the last generation a checkpoint's re-fit made that of; of `new`: how many new."""
    return {row[0]: row[1] for row in session.execute(_COUNTS, {"checkpoint": checkpoint_id})}


# Built once: every report asks it.
_COUNTS = (
    select(Lineage.kind, func.count(func.distinct(func.coalesce(Lineage.old, Lineage.new))))
    .where(Lineage.checkpoint_id == bindparam("checkpoint"))
    .group_by(Lineage.kind)
)


def _links(family_id: str) -> Select[Lineage, str]:
    return (
        select(Lineage, Checkpoint.name)
        .join(Checkpoint, Checkpoint.id == Lineage.checkpoint_id)
        .where(Lineage.family_id == family_id)
    )
