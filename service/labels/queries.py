"""SQL of labels."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session, undefer

from featurewatch.service.kit.listed import one_of
from featurewatch.service.models import Feature, Verdict
from featurewatch.service.verdicts.statuses import CHANGED


def unlabelled(session: Session, family_id: str, checkpoint_id: str, limit: int) -> list[int]:
    """Numbers of features without a model label that are watched or changed in a checkpoint.

    Watched features come first, then the most changed.
    """
    statement = (
        select(Feature.number)
        .join(Verdict, (Verdict.family_id == Feature.family_id) & (Verdict.feature == Feature.number))
        .where(
            Verdict.checkpoint_id == checkpoint_id,
            Feature.family_id == family_id,
            Feature.model_label.is_(None),
            or_(Feature.watched.is_(True), Verdict.status.in_(CHANGED) & (Verdict.change > 0)),
        )
        .order_by(Feature.watched.desc(), Verdict.change.desc(), Feature.number)
        .limit(limit)
    )
    return list(session.scalars(statement))


def set_label(session: Session, family_id: str, number: int, values: dict[str, Any]) -> None:
    """Write the columns of a feature's model label."""
    chosen = (Feature.family_id == family_id) & (Feature.number == number)
    session.execute(update(Feature).where(chosen).values(**values))


def with_logits(session: Session, family_id: str, numbers: Sequence[int]) -> dict[int, Feature]:
    """Number -> feature with its logits, which lists do not load."""
    chosen = (Feature.family_id == family_id, one_of(Feature.number, values=numbers))
    rows = session.scalars(select(Feature).where(*chosen).options(undefer(Feature.logits)))
    return {feature.number: feature for feature in rows}


def labelled_by(session: Session, family_id: str, numbers: Sequence[int], run_id: str) -> set[int]:
    """The features that a run has already labelled."""
    chosen = (Feature.family_id == family_id, one_of(Feature.number, values=numbers))
    return set(session.scalars(select(Feature.number).where(*chosen, Feature.model_label_run == run_id)))
