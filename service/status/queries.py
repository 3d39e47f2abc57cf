"""SQL of the service's own state."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from service.models import Checkpoint, Delivery, Family, Run


def ping(session: Session) -> None:
    """Ask the database anything."""
    session.execute(text("SELECT 1"))


def runs_by_state(session: Session) -> dict[str, int]:
    """How many runs are in each state."""
    return {row[0]: row[1] for row in session.execute(select(Run.state, func.count()).group_by(Run.state))}


def oldest_queued(session: Session) -> datetime | None:
    """When the longest waiting run was queued."""
    return session.scalar(select(func.min(Run.created_at)).where(Run.state == "queued"))


def deliveries_by_state(session: Session) -> dict[str, int]:
    """How many webhook deliveries are in each state."""
    statement = select(Delivery.state, func.count()).group_by(Delivery.state)
    return {row[0]: row[1] for row in session.execute(statement)}


def newest_quality(session: Session) -> Sequence[tuple[str, str, dict[str, Any]]]:
    """(family, checkpoint, quality) of the checkpoint of each family that was judged last."""
    last = (
        select(Checkpoint.family_id, func.max(Checkpoint.judged_at).label("at"))
        .where(Checkpoint.state == "judged")
        .group_by(Checkpoint.family_id)
        .subquery()
    )
    statement = (
        select(Family.name, Checkpoint.name, Checkpoint.quality)
        .join(last, (last.c.family_id == Checkpoint.family_id) & (last.c.at == Checkpoint.judged_at))
        .join(Family, Family.id == Checkpoint.family_id)
        .order_by(Family.name)
    )
    return [(family, checkpoint, quality or {}) for family, checkpoint, quality in session.execute(statement)]
