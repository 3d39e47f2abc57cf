"""SQL of health checks, workers and metrics."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Float, cast, delete, func, select, text, true
from sqlalchemy.orm import Session

from featurewatch.service.families.queries import LISTED
from featurewatch.service.models import Alert, Checkpoint, Delivery, Family, Run, Worker

UNKNOWN_DEVICE = "unknown"
SEEN_EVERY = timedelta(seconds=15)
GONE_AFTER = 3 * SEEN_EVERY
"""A worker that has not been seen for this long has ended or cannot reach the database."""


def ping(session: Session) -> None:
    """Run a trivial query."""
    session.execute(text("SELECT 1"))


def note_worker(session: Session, name: str, *, stuck: bool, now: datetime) -> None:
    """Record a sign of life of a worker. Workers not seen for a day are deleted."""
    session.execute(delete(Worker).where(Worker.seen_at < now - timedelta(days=1)))
    session.merge(Worker(name=name, stuck=stuck, seen_at=now))


def forget_worker(session: Session, name: str) -> None:
    """Delete a worker that has ended."""
    session.execute(delete(Worker).where(Worker.name == name))


def workers(session: Session, now: datetime) -> tuple[int, int]:
    """Number of workers, and of stuck workers."""
    statement = select(Worker.stuck, func.count()).where(Worker.seen_at > now - GONE_AFTER).group_by(Worker.stuck)
    counts: dict[bool, int] = {row[0]: row[1] for row in session.execute(statement)}
    return sum(counts.values()), counts.get(True, 0)


def runs_by_kind_and_state(session: Session) -> dict[tuple[str, str], int]:
    """(kind, state) -> number of runs."""
    statement = select(Run.kind, Run.state, func.count()).group_by(Run.kind, Run.state)
    return {(kind, state): count for kind, state, count in session.execute(statement)}


def oldest_queued(session: Session) -> datetime | None:
    """When the oldest queued run was created."""
    return session.scalar(select(func.min(Run.created_at)).where(Run.state == "queued"))


def compute_seconds(session: Session) -> Sequence[tuple[str, str, float]]:
    """(kind, device of the last attempt, seconds) of runs, summed over their stages."""
    # Both databases have this function, under different names.
    each = func.json_each if session.get_bind().dialect.name == "sqlite" else func.json_each_text
    stage = each(Run.seconds).table_valued("value")
    device = func.coalesce(Run.usage["device"].as_string(), UNKNOWN_DEVICE).label("device")
    statement = select(Run.kind, device, func.sum(cast(stage.c.value, Float))).join(stage, true())
    statement = statement.group_by(Run.kind, "device")
    return [(kind, where, seconds) for kind, where, seconds in session.execute(statement)]


def deliveries_by_state(session: Session) -> dict[str, int]:
    """State -> number of webhook deliveries."""
    statement = select(Delivery.state, func.count()).group_by(Delivery.state)
    return {row[0]: row[1] for row in session.execute(statement)}


def oldest_pending(session: Session) -> datetime | None:
    """When the oldest pending delivery was created."""
    return session.scalar(select(func.min(Delivery.created_at)).where(Delivery.state == "pending"))


def open_alerts(session: Session) -> Sequence[tuple[str, int]]:
    """(family, number of open alerts); the empty name stands for alerts without a family."""
    statement = (
        select(Family.name, func.count(Alert.id))
        .outerjoin(Alert, (Alert.family_id == Family.id) & (Alert.state == "open"))
        .where(LISTED)
        .group_by(Family.name)
        .order_by(Family.name)
    )
    of_none = select(func.count()).where(Alert.family_id.is_(None), Alert.state == "open")
    return [*((family, count) for family, count in session.execute(statement)), ("", session.scalar(of_none) or 0)]


def newest_judged(session: Session) -> Sequence[tuple[str, str, datetime, dict[str, Any]]]:
    """(family, checkpoint, judged at, quality) of each family's most recently judged checkpoint."""
    last = (
        select(Checkpoint.family_id, func.max(Checkpoint.judged_at).label("at"))
        .where(Checkpoint.state == "judged")
        .group_by(Checkpoint.family_id)
        .subquery()
    )
    statement = (
        select(Family.name, Checkpoint.name, Checkpoint.judged_at, Checkpoint.quality)
        .join(last, (last.c.family_id == Checkpoint.family_id) & (last.c.at == Checkpoint.judged_at))
        .join(Family, Family.id == Checkpoint.family_id)
        .where(LISTED)
        .order_by(Family.name)
    )
    return [(family, name, at, quality or {}) for family, name, at, quality in session.execute(statement)]
