"""SQL of dictionaries."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from featurewatch.service.models import Source


def of_checkpoint(session: Session, checkpoint_id: str) -> Sequence[Source]:
    """The sources of a checkpoint that have a dictionary."""
    statement = select(Source).where(Source.checkpoint_id == checkpoint_id, Source.dictionary.is_not(None))
    return session.scalars(statement.order_by(Source.hook_point)).all()
