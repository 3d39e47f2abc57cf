"""SQL of signatures and their readings."""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Select, bindparam, select
from sqlalchemy.orm import Session

from featurewatch.service.kit.ids import parse_feature_id
from featurewatch.service.models import Checkpoint, Reading, Signature


def listing(family_id: str) -> Select[Signature]:
    """Select a family's signatures, in no order."""
    return select(Signature).where(Signature.family_id == family_id)


def by_name(session: Session, family_id: str, name: str) -> Signature | None:
    """One signature of a family."""
    return session.scalar(listing(family_id).where(Signature.name == name))


def by_ids(session: Session, ids: Collection[str]) -> Sequence[Signature]:
    """The signatures with these ids that still exist, oldest first."""
    return session.scalars(
        select(Signature).where(Signature.id.in_(ids)).order_by(Signature.created_at, Signature.id)
    ).all()


def of_family(session: Session, family_id: str) -> Sequence[Signature]:
    """All signatures of a family, oldest first."""
    return session.scalars(listing(family_id).order_by(Signature.created_at, Signature.id)).all()


def reading(session: Session, signature_id: str, checkpoint_id: str) -> Reading | None:
    """The reading of a signature in a checkpoint."""
    return session.get(Reading, (signature_id, checkpoint_id))


def readings(session: Session, signature_id: str) -> Sequence[tuple[Reading, Checkpoint]]:
    """Readings of a signature with their checkpoints, parents before their children."""
    return session.execute(_readings(signature_id).order_by(Checkpoint.created_at, Checkpoint.id)).all()


def newest(session: Session, signature_id: str) -> tuple[Reading, Checkpoint] | None:
    """The reading in the most recently registered checkpoint."""
    statement = _readings(signature_id).order_by(Checkpoint.created_at.desc(), Checkpoint.id.desc())
    return session.execute(statement.limit(1)).first()


def _readings(signature_id: str) -> Select[Reading, Checkpoint]:
    statement = select(Reading, Checkpoint).join(Checkpoint, Checkpoint.id == Reading.checkpoint_id)
    return statement.where(Reading.signature_id == signature_id)


def at_checkpoint(session: Session, checkpoint_id: str) -> Sequence[tuple[Reading, str, str]]:
    """(reading, signature, baseline) of every reading of a checkpoint, by name."""
    return [(row[0], row[1], row[2]) for row in session.execute(_AT_CHECKPOINT, {"checkpoint": checkpoint_id})]


# Built once: every report runs it.
_AT_CHECKPOINT = (
    select(Reading, Signature.name, Checkpoint.name)
    .join(Signature, Signature.id == Reading.signature_id)
    .join(Checkpoint, Checkpoint.id == Signature.baseline_id)
    .where(Reading.checkpoint_id == bindparam("checkpoint"))
    .order_by(Signature.name)
)


def carriers(session: Session, family_id: str, most: int) -> list[int]:
    """Numbers of the features that carry the family's signatures, the `most` strongest of each signature."""
    rows = session.scalars(select(Signature.chosen).where(Signature.family_id == family_id).order_by(Signature.name))
    # A signature may list a feature at several hook points.
    numbers = [number for chosen in rows for number in list(dict.fromkeys(carried(chosen)))[:most]]
    return list(dict.fromkeys(numbers))


def carried(chosen: Sequence[Any] | None) -> list[int]:
    """Numbers of the features that a signature chose."""
    return [parse_feature_id(feature["feature"]) for feature in chosen or []]
