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
    """(link, checkpoint) of a family's re-fits, oldest first; one row more than `limit` if there are more."""
    statement = _links(family_id)
    if generation is not None:
        statement = statement.where(Lineage.generation == generation)
    if kind is not None:
        statement = statement.where(Lineage.kind == kind)
    keys = [SortKey(Lineage.generation), SortKey(Lineage.id)]
    return [(row[0], row[1]) for row in session.execute(keyset(statement, keys, after, limit))]


def of_feature(session: Session, family_id: str, number: int) -> Sequence[tuple[Lineage, str]]:
    """(link, checkpoint) of all links from or to a feature, oldest first."""
    statement = _links(family_id).where(or_(Lineage.old == number, Lineage.new == number))
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


def _links(family_id: str) -> Select[Lineage, str]:
    return (
        select(Lineage, Checkpoint.name)
        .join(Checkpoint, Checkpoint.id == Lineage.checkpoint_id)
        .where(Lineage.family_id == family_id)
    )
